"""A quantized model in memory, whoever has made it, to be evaluated.

compressed-tensors and bitnet are opened by transformers; so is a GGUF file. gptq, awq and
auto-round are unpacked here: the packages that read them do not fit into this environment. Weights
are those that a reader of the file computes with, in the float type of the file; what is done with
them may be more precise.
"""

import json
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.utils import match_named_modules
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from normtweak_core.activations.rounding import round_inputs
from normtweak_core.errors import InputError, keys_called
from normtweak_core.export.foreign.layouts import read_packing
from normtweak_core.export.foreign.linears import packed_linears, unpacked_tensors
from normtweak_core.export.foreign.unpacking import unpacked
from normtweak_core.export.formats.compressed_tensors import INPUTS
from normtweak_core.model.architecture import first_line, quantization_method, read_config
from normtweak_core.model.half import sum_in_float32
from normtweak_core.model.loading import load_causal_lm, no_progress_bar
from normtweak_core.model.skeleton import build_skeleton, opener
from normtweak_core.scratch import scratch_folder
from normtweak_core.stored import TORCH_TYPES, read_tensor


def load_quantized(path: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return a quantized model in eval mode without gradients.

    Args:
        path: A folder whose config.json has a quantization_config, or a GGUF file.
        dtype: What it computes in.
        device: Where it lives.

    Raises:
        InputError: It is quantized in a way that nothing here opens, or a tensor is missing.
    """
    if path.suffix.lower() == ".gguf":
        model = _by_transformers(path.parent, gguf_file=path.name, dtype=dtype)
    else:
        method = quantization_method(path)
        if method in ("gptq", "awq", "auto-round"):
            with keys_called({"base": "a quantized model"}):
                model = _from_packed(path, dtype)
        elif method == "compressed-tensors":
            dense = CompressedTensorsConfig(dequantize=True)
            model = _in(_by_transformers(path, quantization_config=dense, dtype="auto"), dtype)
            round_inputs(model, _rounded_linears(path, model))
        else:
            model = _by_transformers(path, dtype=dtype)
    sum_in_float32(model)
    return model.to(device).eval().requires_grad_(False)


def _rounded_linears(folder: Path, model: PreTrainedModel) -> list[str]:
    """Return the names of the linears that round what they read, which a dense model does not.

    Raises:
        InputError: In another way than ours.
    """
    config, found = read_config(folder)["quantization_config"], []
    for group in (config.get("config_groups") or {}).values():
        rounding = group.get("input_activations")
        if rounding is None:
            continue
        if other := {key: rounding.get(key) for key in INPUTS if rounding.get(key) != INPUTS[key]}:
            wanted = ", ".join(f"{key}: {INPUTS[key]}" for key in other)
            raise InputError(
                "activations of a compressed-tensors model must be rounded to int8, per token, "
                f"dynamic and symmetric, to be measured here ({wanted}); {folder} has {other}: "
                "measure it with the program it was made for"
            )
        matched = match_named_modules(model, group["targets"], config.get("ignore") or [])
        found += [name for name, _ in matched]
    return found


def _by_transformers(folder: Path, **arguments: Any) -> PreTrainedModel:
    try:
        with no_progress_bar():
            gguf = "gguf_file" in arguments  # whose config lies in the file
            reader = AutoModelForCausalLM if gguf else opener(folder)
            return reader.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **arguments
            )
    except (ValueError, ImportError, OSError) as error:
        raise InputError(
            f"transformers must be able to open {folder}; it is not: {first_line(error)}"
        ) from error


def _in(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model in another float type, as if it had been loaded in it.

    Loading leaves the frequencies of rotary embeddings and their like in float32.
    """
    if dtype is torch.float32:
        return model.to(dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _conv1d_weights(folder: Path) -> set[str]:
    """Return what weights that are [in, out] may be called in the files of a model."""
    model = build_skeleton(folder, torch.float32)
    layers = [name for name, one in model.named_modules() if isinstance(one, Conv1D)]
    short = [name.removeprefix(f"{model.base_model_prefix}.") for name in layers]
    return {f"{name}.weight" for name in (*layers, *short)}


def _from_packed(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with dense weights, by way of a folder that holds them."""
    config = read_config(folder)
    packing = read_packing(folder)
    linears = packed_linears(folder, packing)
    del config["quantization_config"]
    rest = unpacked_tensors(folder, linears)
    dense = {name: read_tensor(stored) for name, stored in rest.items()}
    with scratch_folder("packed") as temporary:
        (temporary / "config.json").write_text(json.dumps(config))
        conv1d = _conv1d_weights(temporary)
        for name, linear in linears.items():
            scales = linear.parts["scales"]
            weight = unpacked(linear).dequantize().to(TORCH_TYPES[scales.dtype])
            weight = weight.T if f"{name}.weight" in conv1d else weight
            dense[f"{name}.weight"] = weight.contiguous()
        save_file(dense, temporary / "model.safetensors", metadata={"format": "pt"})
        # What old quantizers left in their files: biases of zeros, for one.
        return load_causal_lm(temporary, dtype, "cpu", allow_unused=True)
