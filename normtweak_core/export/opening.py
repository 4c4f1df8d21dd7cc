"""A quantized model in memory, whoever has made it, to be evaluated.

compressed-tensors and bitnet are opened by transformers; so is a GGUF file. GPTQ is unpacked here:
the packages that read it do not fit into this environment. Weights are those that a reader of the
file computes with, in the float type of the file; what is done with them may be more precise.
"""

import json
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.utils import match_named_modules
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from normtweak_core.activations.rounding import round_inputs
from normtweak_core.errors import InputError
from normtweak_core.export.formats.compressed_tensors import INPUTS
from normtweak_core.export.formats.packing import unpack_rows
from normtweak_core.model.architecture import first_line, quantization_method, read_config
from normtweak_core.model.checkpoint import stored_tensors
from normtweak_core.model.half import sum_in_float32
from normtweak_core.model.loading import load_causal_lm, no_progress_bar
from normtweak_core.scratch import scratch_folder
from normtweak_core.stored import read_tensor

GPTQ_PARTS = ("qweight", "qzeros", "scales", "g_idx")


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
        if method == "gptq":
            model = _from_gptq(path, dtype)
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
            return AutoModelForCausalLM.from_pretrained(
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


def _from_gptq(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with dense weights, by way of a folder that holds them."""
    config = read_config(folder)
    quantization = config.pop("quantization_config")
    stored = stored_tensors(folder)
    dense: dict[str, Tensor] = {}
    for name in sorted(stored):
        linear, _, last = name.rpartition(".")
        if last == "qweight":
            parts = {
                part: read_tensor(stored[f"{linear}.{part}"])
                for part in GPTQ_PARTS
                if f"{linear}.{part}" in stored
            }
            dense[f"{linear}.weight"] = dequantize_gptq(parts, quantization, linear)
        elif last not in GPTQ_PARTS or f"{linear}.qweight" not in stored:
            dense[name] = read_tensor(stored[name])
    with scratch_folder("gptq") as temporary:
        (temporary / "config.json").write_text(json.dumps(config))
        save_file(dense, temporary / "model.safetensors", metadata={"format": "pt"})
        # What old quantizers left in their files: biases of zeros, for one.
        return load_causal_lm(temporary, dtype, "cpu", allow_unused=True)


def dequantize_gptq(parts: dict[str, Tensor], quantization: dict[str, Any], linear: str) -> Tensor:
    """Return the dense weight ``[out, in]`` of a GPTQ linear, in the type of its scales.

    Columns may be in any order of groups (act-order without static groups).

    Args:
        parts: qweight, qzeros, scales and g_idx.
        quantization: The quantization_config of config.json.
        linear: Name, for the message.

    Raises:
        InputError: A part is missing.
    """
    missing = [part for part in GPTQ_PARTS if part not in parts]
    if missing:
        raise InputError(f"{linear} must have {', '.join(GPTQ_PARTS)}; it lacks {missing[0]}")
    bits, columns = quantization["bits"], parts["g_idx"].shape[0]
    scales = parts["scales"].T.to(torch.float32)
    zeros = unpack_rows(parts["qzeros"], bits, scales.shape[0]).T.to(torch.int32)
    if quantization.get("checkpoint_format", "gptq") == "gptq":  # version 1 stores zero - 1
        zeros = (zeros + 1) % 2**bits
    codes = unpack_rows(parts["qweight"].T.contiguous(), bits, columns)
    groups = parts["g_idx"].long()
    weight = (codes.to(torch.float32) - zeros[:, groups].to(torch.float32)) * scales[:, groups]
    return weight.to(parts["scales"].dtype).contiguous()
