"""Opens an export with stock transformers and compares it with its manifest: a script by itself.

It runs in a fresh, isolated process (``python -I reader.py FOLDER RESULT PARENT``) and imports the
standard library, torch, safetensors, transformers and the library by which that opens the format,
nothing of the package that wrote the folder: any user finds the same. RESULT receives JSON, whose
``problems`` are empty where the export is faithful. One that cannot be opened is an error.
"""

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


def die_with(parent):
    """End this process as soon as its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started the reader is gone")


if __name__ == "__main__":  # before torch and transformers are imported, which read them
    die_with(int(sys.argv[3]))
    os.environ |= {"HF_HUB_OFFLINE": "1", "TORCH_COMPILE_DISABLE": "1"}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    gc.set_threshold(100_000, 20, 50)  # to look for garbage among imports takes a third of them

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

OUR_PACKAGES = ("normtweak_core", "tasks", "flows")
PACKED = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
PACKED += ("qweight", "qzeros", "scales", "g_idx")
SCALES = (".weight_scale", ".scales")  # of compressed-tensors [out, groups]; of gptq [groups, out]
LOCALLY = {"local_files_only": True, "trust_remote_code": False}
ORDER = ("loading", "scales", "weight", "layer", "file", "tokenizer", "logits", "argmax")


def read_json(path):
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def load(folder, manifest):
    """Return the model in its default dtype, and what transformers says about the loading."""
    options = LOCALLY | {"output_loading_info": True}
    if manifest["export"]["format"] == "gptq":
        # The plain torch kernel keeps codes and scales as stored; others rearrange them.
        bits = manifest["export"]["bits"]
        options["quantization_config"] = transformers.GPTQConfig(bits, backend="gptq_torch")
    kind = read_json(folder / "config.json")["architectures"][0]
    what = "ImageTextToText" if kind.endswith("ForConditionalGeneration") else "CausalLM"
    reader = getattr(transformers, f"AutoModelFor{what}")
    return reader.from_pretrained(folder, **options)


def check_loading(info, problems):
    """Note tensors that transformers missed, did not expect or could not fit."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        for entry in sorted(map(str, info.get(kind) or ())):
            problems.append({"what": "loading", "name": entry, "found": kind.replace("_", " ")})


def unpack_while_running(model):
    """Let each compressed linear unpack while it runs, and not all in the first forward pass.

    Packed they lie in pages of the file, so that no more than one dense linear is in memory.
    """
    if not hasattr(model, "ct_decompress_hook"):
        return
    model.ct_decompress_hook.remove()
    for module in model.modules():
        if hasattr(module, "weight_packed"):
            module.forward = unpacked(module)(module.forward)


@contextlib.contextmanager
def unpacked(module):
    """Let a compressed linear hold its weight for a time."""
    from compressed_tensors.compressors import decompress_module as unpack

    packed, status = module._parameters, module.quantization_status
    module._parameters = dict(packed)
    unpack(module)
    yield
    module._parameters, module.quantization_status = packed, status


def dense_tensors(model, conv1d):
    """Yield name and tensor of everything the float model computes with, all of it dense."""
    packed = set()
    with torch.inference_mode():
        for name, module in model.named_modules():
            if hasattr(module, "weight_packed"):
                with unpacked(module):
                    yield f"{name}.weight", module.weight
            if hasattr(module, "qweight"):
                packed.add(name)
                weight = module.dequantize_weight()  # [in, out], as that of a Conv1D
                yield f"{name}.weight", weight if conv1d else weight.T
        for name, tensor in model.state_dict().items():
            module, _, last = name.rpartition(".")
            if not (module in packed and last in PACKED):
                yield name, tensor


def digest(tensor, dtype):
    """Return the SHA-256 over the tensor in ``dtype``, or None where that would change it."""
    cast = tensor.detach().to("cpu", dtype)
    if not torch.equal(cast.to(tensor.dtype), tensor.cpu()):
        return None
    raw = cast.contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy()).hexdigest()


def check_tensors(model, expected, conv1d, problems):
    """Compare every tensor bit for bit; return how many there were."""
    left = dict(expected)
    for name, tensor in dense_tensors(model, conv1d):
        entry = left.pop(name, None)
        if entry is None:
            continue  # a tied copy, or the scales beside a weight that was unpacked
        found, wanted = list(tensor.shape), entry["shape"]
        if found == wanted:
            found, wanted = digest(tensor, getattr(torch, entry["dtype"])), entry["sha256"]
            found = found or f"values that {entry['dtype']} does not hold"
        if found != wanted:
            problems.append({"what": "weight", "name": name, "expected": wanted, "found": found})
    problems.extend(
        {"what": "weight", "name": name, "expected": entry["sha256"], "found": "no such tensor"}
        for name, entry in left.items()
    )
    return len(expected) - len(left)


def check_scales(folder, expected, problems):
    """Compare the stored scales of each linear whose weight readers unpack."""
    left = {
        entry.get("stored", name).removesuffix(".weight"): entry
        for name, entry in expected.items()
        if "scales_sha256" in entry
    }
    for entry in expected.values():  # matrices of experts, which loading stacks
        left |= {
            one["stored"]: {**one, "dtype": entry["dtype"]} for one in entry.get("linears", ())
        }
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for key in stored.keys():
                module = next((key.removesuffix(end) for end in SCALES if key.endswith(end)), key)
                if module == key or module not in left:
                    continue
                wanted = (entry := left.pop(module))["scales_sha256"]
                scales = stored.get_tensor(key)
                scales = scales.T if key.endswith(SCALES[1]) else scales
                found = digest(scales, getattr(torch, entry["dtype"]))
                if found != wanted:
                    problems.append(
                        {"what": "scales", "name": module, "expected": wanted, "found": found}
                    )
    problems.extend({"what": "scales", "name": name, "found": "no such tensor"} for name in left)


def check_layers(model, folder, probe, expected, problems):
    """Run each rounding linear on its own input; return how many and the largest difference.

    The difference is a fraction of the linear's largest output.
    """
    if (terms := probe.get("layers")) is None:
        return None
    reference, largest = load_file(folder / probe["file"]), 0.0
    left = {name.removeprefix("output/") for name in reference if name.startswith("output/")}
    for name, module in model.named_modules():
        ternary = type(module).__name__ == "BitLinear"
        if not (ternary or hasattr(module, "weight_packed")):
            continue
        for key in module.state_dict() if ternary else ():  # loading fills in defaults
            if f"{name}.{key}" not in expected:
                problems.append({"what": "weight", "name": f"{name}.{key}", "found": "not ours"})
        if name not in left:
            problems.append({"what": "layer", "name": name, "found": "no reference output"})
            continue
        left.remove(name)
        found = layer_difference(module, name, reference, terms["kept_outputs"])
        if not found <= (wanted := terms["tolerance"]):  # also true for NaN
            problems.append({"what": "layer", "name": name, "expected": wanted, "found": found})
        largest = max(largest, found)
    gone = ({"what": "layer", "name": name, "found": "no such linear"} for name in sorted(left))
    problems.extend(gone)
    return {"difference": largest, "tolerance": terms["tolerance"]}


def layer_difference(module, name, reference, kept_outputs):
    """Return how far a stock linear is from the reference, as a fraction of its largest output.

    It reads one window: compressed-tensors tells tokens apart by the first two dimensions.
    """
    x, wanted = reference[f"input/{name}"], reference[f"output/{name}"]
    with torch.inference_mode():
        y = module(x.to(module.weight_scale.dtype)[None])[0].float()
    distances = (y[:, :: -(-y.shape[1] // kept_outputs)] - wanted).abs()
    return float(distances.max() / wanted.abs().max().clamp(min=1e-30))


def check_files(folder, expected, problems):
    """Compare every file with its hash."""
    for name, wanted in expected.items():
        path, found = folder / name, "no such file"
        if path.is_file():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted:
            problems.append({"what": "file", "name": name, "expected": wanted, "found": found})


def check_logits(model, folder, probe, problems):
    """Compare the logits of the probe tokens, row after row; return the relative difference.

    It is the largest one, or the mean where the manifest says so.
    """
    reference = load_file(folder / probe["file"])
    with torch.inference_mode():
        logits = model(input_ids=reference["input_ids"], use_cache=False).logits
    logits = logits.flatten(0, 1).float().cpu()
    magnitude = reference["logits"].abs().max()
    distances = (logits[:, reference["columns"]] - reference["logits"]).abs()
    mean = probe.get("logit_statistic") == "mean"
    difference = float((distances.mean() if mean else distances.max()) / magnitude)
    tolerance = probe["logit_tolerance"]
    if not difference <= tolerance:  # also true for NaN
        problems.append(
            {"what": "logits", "name": "probe tokens", "expected": tolerance, "found": difference}
        )
    # Two tokens closer than the tolerance may trade places in a faithful reader.
    clear = reference["margin"] > 2 * tolerance * magnitude
    same = logits.argmax(dim=-1) == reference["argmax"]
    if not bool(same[clear].all()):
        wrong = int((clear & ~same).sum())
        problems.append({"what": "argmax", "name": "probe tokens", "expected": 0, "found": wrong})
    return {"difference": difference, "argmax_agreement": float(same.float().mean())}


def tokenizer_answers(tokenizer, probe):
    """Return what a tokenizer says to the questions of a probe, by their names."""
    chat = probe.get("conversation")
    marked = (probe.get("marked_text", ""), probe.get("marked_ids", []))
    templates = tokenizer.chat_template or {}
    templates = {"default": templates} if isinstance(templates, str) else templates
    added = ((i, repr(token)) for i, token in tokenizer.added_tokens_decoder.items())
    return {
        "ids": tokenizer(probe["text"])["input_ids"],
        "decoded": tokenizer.decode(probe["ids"]),
        "marked_ids": tokenizer(marked[0])["input_ids"],
        "unmarked": tokenizer.decode(marked[1], skip_special_tokens=True),
        "special_tokens": {name: str(one) for name, one in tokenizer.special_tokens_map.items()},
        "vocabulary_sha256": sha256_of(sorted(tokenizer.get_vocab().items())),
        "added_tokens_sha256": sha256_of(sorted(added)),
        "chat_templates": {name: sha256_of(text) for name, text in templates.items()},
        "chats": chat and {name: render(tokenizer, templates, name, chat) for name in templates},
    }


def render(tokenizer, templates, name, chat):
    """Return the conversation as a template writes it, or the kind of error that it raises."""
    more = {} if name == "default" else {key: chat[key] for key in ("tools", "documents")}
    options = {"tokenize": False, "add_generation_prompt": True} | more
    try:
        template = chat["clock"] + templates[name]
        return tokenizer.apply_chat_template(chat["messages"], chat_template=template, **options)
    except Exception as error:  # a template is a program of its own, which may refuse the roles
        return type(error).__name__


def sha256_of(value):
    """Return the SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def check_tokenizer(folder, probe, sample, problems):
    """Compare every answer of the probe; return whether there is a tokenizer.

    The probe was asked of the float model's tokenizer; the sample, where there is one, is what the
    model was calibrated on, and tells when that tokenizer was already wrong.
    """
    if probe is None:
        return False
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCALLY)
    except Exception as error:  # whatever a file that is no tokenizer leads to, plain ones among it
        found = f"{type(error).__name__}: {error}"
        problems.append({"what": "tokenizer", "name": "loading", "found": found})
        return True
    answers = tokenizer_answers(tokenizer, probe)
    checks = [(name, found, probe[name]) for name, found in answers.items() if name in probe]
    if sample is not None:
        checks.append(("calibration text", tokenizer.decode(sample["ids"]), sample["text"]))
    for name, found, wanted in checks:
        if found != wanted:
            problems.append({"what": "tokenizer", "name": name, "expected": wanted, "found": found})
    return True


def examine(folder):
    """Return what differs from the manifest, and how closely the rest agrees."""
    transformers.logging.disable_progress_bar()
    manifest = read_json(folder / "normtweak.json")
    problems = []
    model, info = load(folder, manifest)
    check_loading(info, problems)
    unpack_while_running(model)
    layers = check_layers(model.eval(), folder, manifest["probe"], manifest["tensors"], problems)
    logits = check_logits(model, folder, manifest["probe"], problems)
    check_scales(folder, manifest["tensors"], problems)
    tensors = check_tensors(model, manifest["tensors"], "block" in manifest["export"], problems)
    consumers = manifest.get("consumers", {}).values()  # other programs and what they open
    others = {one["file"]: one["sha256"] for one in consumers if "sha256" in one}
    check_files(folder, manifest["files"] | others, problems)
    told = manifest["probe"]["tokenizer"], manifest.get("calibration_sample")
    tokenizer = check_tokenizer(folder, *told, problems)
    problems.sort(key=lambda problem: ORDER.index(problem["what"]))
    return {
        "problems": problems,
        "tensors": tensors,
        "logits": logits,
        "layers": layers,
        "tokenizer": tokenizer,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def main(folder, result):
    """Write what was found to ``result``."""
    report = examine(folder)
    report["ours"] = sorted(name for name in sys.modules if name.split(".")[0] in OUR_PACKAGES)
    result.write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    gc.freeze()  # or all is looked through once more
