"""What a model's config.json says about it before anything heavy is imported; no torch."""

import codecs
import contextlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from normtweak_core.errors import InputError
from normtweak_core.experts.names import MARK, first_odd_tensor
from normtweak_core.given_files import read_json_object
from normtweak_core.lazy import lazy
from normtweak_core.model.checkpoint import check_floats, stored_names
from normtweak_core.paths import shown
from normtweak_core.scratch import scratch_folder
from normtweak_core.vision.kinds import reads_images

transformers = lazy("transformers")

EXPERT_KEYS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
)
EXPERT_NAMES = re.compile("expert|moe|router")  # in names of weights, where a config counts experts
CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "seq_length",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
)
OPENED_METHODS = ("compressed-tensors", "bitnet", "gptq", "awq", "auto-round")
DECODER_SUFFIXES = ("ForCausalLM", "LMHeadModel")
REMEDY = "fetch or save the model again"
# Of the keys that are read here: what they hold, where they hold anything.
KINDS = {
    "model_type": (str, "text"),
    "architectures": (list, "a list of names"),
    "text_config": (dict, "an object"),
    "ffn_config": (dict, "an object"),
    "quantization_config": (dict, "an object"),
}


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json.

    Raises:
        InputError: It is absent, no JSON object, or a key that is read here is of another kind.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"a model folder must hold config.json; {folder} does not. "
            "Give the folder that save_pretrained wrote."
        )
    config = read_json_object(path, REMEDY)
    if isinstance(config.get("architectures"), str):
        config["architectures"] = [config["architectures"]]
    for key, (kind, said) in KINDS.items():
        value = config.get(key)
        whole = not isinstance(value, list) or all(isinstance(entry, str) for entry in value)
        if value is not None and not (isinstance(value, kind) and whole):
            raise InputError(f"{path}: {key} must be {said}; found {shown(value)}: {REMEDY}")
    return config


@contextlib.contextmanager
def readable_by_transformers(folder: Path) -> Iterator[Path]:
    """Yield the folder, or one of links to it whose config.json does not begin with a mark.

    transformers takes a byte-order mark, as editors on Windows put it before a text, for an error.
    """
    path = folder / "config.json"
    if not (path.is_file() and path.read_bytes().startswith(codecs.BOM_UTF8)):
        yield folder
        return
    with scratch_folder("config") as linked:
        for path in folder.iterdir():
            if path.name != "config.json":
                (linked / path.name).symlink_to(path.resolve())
        (linked / "config.json").write_text(json.dumps(read_config(folder)), encoding="utf-8")
        yield linked


def check_model_folder(folder: Path) -> None:
    """Accept a float decoder that this version can quantize, from its config.json alone.

    Raises:
        InputError: The model is no decoder, needs its own code, is quantized, or mixes experts
            in a way that is not supported.
    """
    config = read_config(folder)
    check_decoder(config, str(folder))
    check_experts(config, str(folder), stored_names(folder))
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "an unnamed method")
        raise InputError(
            f"the model must be a float model; {folder} is already quantized ({method}). "
            "Give the model it was made from."
        )
    check_floats(folder)


def check_decoder(config: dict[str, Any], name: str) -> None:
    """Accept a config of a decoder-only language model, which may read images, without own code.

    Raises:
        InputError: It is something else; the message names the key that says so.
    """
    if not config.get("model_type"):
        raise InputError(
            f"config.json of {name} must name its model_type; it does not. "
            "Give a Hugging Face transformers model."
        )
    if config.get("auto_map") and not _is_native(config["model_type"]):
        raise InputError(
            f"the model must run on the code in transformers; {name} brings its own (auto_map), "
            "which is never executed here. Choose a model that needs no trust_remote_code."
        )
    if config.get("is_encoder_decoder"):
        raise InputError(
            f"the model must be a decoder-only language model; {name} is an encoder-decoder "
            f"({config['model_type']}). Choose a causal language model."
        )
    found = config.get("architectures") or []
    if reads_images(config):
        return
    if found and not any(entry.endswith(DECODER_SUFFIXES) for entry in found):
        raise InputError(
            "the model must be a causal language model (...ForCausalLM), or one that reads images "
            f"as well (...ForConditionalGeneration with a vision_config); {name} is "
            f"{', '.join(found)}. Choose a causal language model."
        )


def check_experts(config: dict[str, Any], name: str, weights: Iterable[str]) -> None:
    """Accept a model that mixes no experts, or stores each matrix of each of them by itself.

    A config may count experts that no layer has (a DeepSeek of which all first layers are dense):
    then the weights tell. A count that the family does not know is believed. Whether the model in
    memory is one that can be quantized is seen later, from its modules. No weights are named where
    they are not known yet. A quantized model is only measured, by whoever opens its format.

    Raises:
        InputError: It mixes experts in another way.
    """
    if config.get("quantization_config"):
        return
    weights = list(weights)
    for part in (config, config.get("text_config") or {}, config.get("ffn_config") or {}):
        for key in EXPERT_KEYS:
            if not part.get(key):
                continue
            known = _family_reads(config["model_type"], key)
            if known and not any(map(EXPERT_NAMES.search, weights)):
                continue
            odd = first_odd_tensor(weights)
            if known and odd is None and any(MARK in weight for weight in weights):
                continue
            found = f" and {odd}" if odd else ""
            raise InputError(
                "a mixture of experts must store each matrix of each expert as a tensor of its "
                "own, without biases, as Mixtral and Qwen3-MoE do (...experts.0.w1.weight); "
                f"{name} has {key}: {part[key]}{found}, which is not supported yet. Choose "
                "another model."
            )


def quantization_method(folder: Path) -> str | None:
    """Return how a folder's model is quantized; None: it is a float model.

    Raises:
        InputError: In a way that nothing here opens.
    """
    config = read_config(folder).get("quantization_config")
    if not config:
        return None
    method = config.get("quant_method", "an unnamed method")
    if method not in OPENED_METHODS:
        raise InputError(
            f"a quantized model must be {', '.join(OPENED_METHODS)} or a GGUF file; {folder} is "
            f"quantized with {method}, which nothing here opens: convert it to one of them"
        )
    return method


def model_context(folder: Path) -> int | None:
    """Return the longest window the model was made for, or None where it has no limit.

    Only a config.json that names no length is looked up in transformers, whose classes know it.
    """
    config = read_config(folder)
    for part in (config, config.get("text_config") or {}):
        for key in CONTEXT_KEYS:
            if isinstance(part.get(key), int):
                return part[key]
    try:
        with readable_by_transformers(folder) as readable:
            known = transformers.AutoConfig.from_pretrained(
                readable, local_files_only=True, trust_remote_code=False
            )
    except (ValueError, KeyError) as error:
        raise InputError(
            f"transformers must know the model; it does not know {folder}: {first_line(error)}"
        ) from error
    lengths = (getattr(known.get_text_config(), key, None) for key in CONTEXT_KEYS)
    return next((length for length in lengths if isinstance(length, int)), None)


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, to quote in ours."""
    return str(error).strip().partition("\n")[0]


def _is_native(model_type: str) -> bool:
    """Say whether transformers ships this model's code, without importing it."""
    return _family_folder(model_type) is not None


def _family_reads(model_type: str, key: str) -> bool:
    """Say whether the config class of a family in transformers has a key, without importing it."""
    folder = _family_folder(model_type)
    sources = folder.glob("configuration_*.py") if folder else ()
    return any(key in source.read_text(encoding="utf-8") for source in sources)


def _family_folder(model_type: str) -> Path | None:
    """Return where transformers keeps the code of a family; None where it has none."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return None
    name = model_type.replace("-", "_").removesuffix("_text")
    folder = Path(spec.origin).parent / "models" / name
    return folder if folder.is_dir() else None
