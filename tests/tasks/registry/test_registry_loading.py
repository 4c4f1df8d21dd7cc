"""Registered models opened by a process that cannot import our code and has no network."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tasks.registry.flavor.description import describe_version
from tests.children import QUICK

BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("normtweak_core", "tasks", "flows"):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Blocked())
"""
CONSUMER = """
import json, warnings
import mlflow, pandas, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

def consume(uri):
    prompts = ["once upon a time", "the cat"]
    pyfunc = mlflow.pyfunc.load_model(uri)
    params = {"max_new_tokens": 5}
    answers = pyfunc.predict(prompts, params=params)
    assert answers == pyfunc.predict(pandas.DataFrame({"prompt": prompts}), params=params)
    assert answers[:1] == pyfunc.predict(prompts[0], params=params)
    hot = {"max_new_tokens": 5, "temperature": 3.0, "seed": 1}
    sampled = pyfunc.predict(prompts, params=hot)
    assert sampled == pyfunc.predict(prompts, params=hot)
    assert sampled != pyfunc.predict(prompts, params=hot | {"seed": 2})
    assert len(pyfunc.predict([""], params=params)) == 1

    parts = mlflow.transformers.load_model(uri, return_type="components")
    pipeline = mlflow.transformers.load_model(uri)
    piped = [pipeline(p, max_new_tokens=5, do_sample=False) for p in prompts]

    folder = mlflow.artifacts.download_artifacts(uri) + "/model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "the sun"}]
    for one in (tokenizer, parts["tokenizer"]):
        assert one.apply_chat_template(chat, tokenize=False) == "<s>the sun"
        named = {"chat_template": "tool_use", "tools": [{}, {}], "tokenize": False}
        assert one.apply_chat_template(chat, **named) == "the sun2"
    ids = tokenizer(prompts[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, parts["model"](ids).logits)
    output = model.generate(ids, max_new_tokens=5, do_sample=False)[0]
    return {
        "answers": [prompt + answer for prompt, answer in zip(prompts, answers)],
        "piped": [p[0]["generated_text"] for p in piped],
        "plain": tokenizer.decode(output, skip_special_tokens=True),
        "up_proj": model.model.layers[0].mlp.up_proj.weight.tolist(),
    }

json.dump([consume(uri) for uri in sys.argv[2:]], open(sys.argv[1], "w"))
"""


def run_without_us(registry, code: str, *arguments: str) -> str:
    """Return what a program prints that has the registry and not our code."""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": registry.uri,
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-c", QUICK + BLOCKER + code, *arguments],
        cwd=registry.root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mismatch" not in done.stderr, done.stderr  # pins and installed packages agree
    return done.stdout


def consume(registry, *uris: str) -> list[dict]:
    out = registry.root / "consumed.json"
    run_without_us(registry, CONSUMER, str(out), *uris)
    return json.loads(out.read_text())


def test_the_description_of_a_version_says_how_to_open_it(registry):
    registered = registry.register()
    described = registry.client.get_model_version(registered.name, "1").description
    loaded, plain = re.findall(r"```python\n(.+?)```", described, re.DOTALL)
    inputs = 'tokenizer("Once upon a time", return_tensors="pt")'
    options = "max_new_tokens=40, do_sample=False"
    plain += f"ids = model.generate(**{inputs}, {options})[0]\n"
    plain += "print(tokenizer.decode(ids, skip_special_tokens=True))"
    # Each with names of its own, in one process.
    one_by_one = "for code in sys.argv[1:]: exec(code, {})"
    first, _, whole = run_without_us(registry, one_by_one, loaded, plain).partition("\n")
    (answer,) = ast.literal_eval(first)
    assert len(answer.split()) > 10
    assert whole.strip().endswith(answer.strip())


def test_the_page_of_the_registry_shows_what_a_version_says_of_itself():
    page = (Path(__file__).parents[3] / "docs" / "registry.md").read_text()
    described = describe_version("models:/quickstart-llama-w2g64@champion")
    blocks = re.findall(r"```python\n.+?```", described, re.DOTALL)
    assert len(blocks) == 2
    assert all(block in page for block in blocks)


def test_models_open_three_ways_without_our_code(registry):
    weights = load_file(registry.export / "model.safetensors")
    expected = [weights["model.layers.0.mlp.up_proj.weight"]]
    registry.register(alias="float")
    for kind in ("symmetric", "asymmetric"):
        folder = registry.root / kind
        shutil.copytree(registry.export, folder)
        expected.append(compress(folder, kind == "symmetric")["model.layers.0.mlp.up_proj"])
        replace(registry, export=folder).register(alias=kind)
        version = registry.client.get_model_version_by_alias("tiny-w4", kind)
        stored = registry.client.get_logged_model(version.tags["logged_model_id"]).artifact_location
        requirements = Path(stored.removeprefix("file://")) / "requirements.txt"
        assert "compressed-tensors==" in requirements.read_text()

    uris = ["models:/tiny-w4/1", "models:/tiny-w4@symmetric", "models:/tiny-w4@asymmetric"]
    for answer, weight in zip(consume(registry, *uris), expected, strict=True):
        assert len(answer["answers"]) == 2
        # The pipeline trims the space in front of a continuation.
        joined = [[text.replace(" ", "") for text in answer[how]] for how in ("answers", "piped")]
        assert joined[0] == joined[1]
        assert answer["answers"][0] == answer["plain"]
        assert torch.equal(torch.tensor(answer["up_proj"]), weight)


def compress(folder, symmetric: bool) -> dict[str, torch.Tensor]:
    """Rewrite a float folder as 4-bit groups of 32; return the weights its reader must find."""
    weights = load_file(folder / "model.safetensors")
    packed, dense = {}, {}
    for name, weight in weights.items():
        if "_proj" not in name:
            packed[name] = weight
            continue
        linear = name.removesuffix(".weight")
        grouped = weight.view(len(weight), -1, 32)
        if symmetric:
            scale = grouped.abs().amax(-1) / 7
            zero = torch.full_like(scale, 8)
        else:
            low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
            scale = (high - low) / 15
            zero = (-low / scale).round()
        codes = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, 15)
        dense[linear] = ((codes - zero[..., None]) * scale[..., None]).view(weight.shape)
        packed[f"{linear}.weight_packed"] = words(codes.view(weight.shape))
        packed[f"{linear}.weight_scale"] = scale
        packed[f"{linear}.weight_shape"] = torch.tensor(weight.shape)
        if not symmetric:
            packed[f"{linear}.weight_zero_point"] = words(zero.T).T.contiguous()
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        **({} if symmetric else {"dequantize": True}),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": "pack-quantized",
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "group",
                    "group_size": 32,
                    "dynamic": False,
                },
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return dense


def words(codes: torch.Tensor) -> torch.Tensor:
    """Pack eight 4-bit codes into each int32, along the last dimension."""
    eights = codes.to(torch.int64).reshape(len(codes), -1, 8)
    packed = sum(eights[..., i] << (4 * i) for i in range(8))
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
