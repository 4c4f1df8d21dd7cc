"""An export as a dense model in memory, to be evaluated."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from normtweak_core.errors import VerificationError
from normtweak_core.export.exported import exported_weights
from normtweak_core.export.manifest import tensor_sha256
from normtweak_core.export.verification.verify import read_manifest
from normtweak_core.model.half import sum_in_float32
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.ternary.inference import TernaryInference


def load_export(folder: Path, source: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return the model that the files of an export stand for, dense in memory, in eval mode.

    Unpacked by our own code: the packages that read gptq do not fit into this environment, and
    compressed-tensors, asked for float32, multiplies codes and scales in float32, which is not the
    weight that readers of the export dtype compute with. Every weight must have the hash that
    ``normtweak.json`` records, which verification compares with what stock readers find. The
    linears of a bitnet export become `TernaryInference` modules. In the export dtype all of it
    computes what readers compute.

    Args:
        folder: The export.
        source: Folder of the float model, whose code runs the weights.
        dtype: What the model computes in.
        device: Where it lives.

    Raises:
        InputError: One of the folders is not what it should be.
        VerificationError: A weight of the export is not the one that was written.
    """
    manifest = read_manifest(folder)
    weights = exported_weights(folder, manifest)
    model = load_causal_lm(source, dtype, device)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name not in weights:  # computed, ternary, or tied to one that is there
                continue
            stored = weights.read(name)
            _check_hash(folder, manifest, name, stored)
            tensor.copy_(stored)
    for name in weights.linears if weights.ternary else ():
        for suffix, stored in weights.tensors(name).items():
            _check_hash(folder, manifest, f"{name}.{suffix}", stored)
        layer = TernaryInference(weights.linear(name), weights.scheme.rms_norm_eps)
        model.set_submodule(name, layer.to(device).eval())
    sum_in_float32(model)
    return model


def _check_hash(folder: Path, manifest: dict[str, Any], name: str, stored: Tensor) -> None:
    if tensor_sha256(stored) != manifest["tensors"][name]["sha256"]:
        raise VerificationError(
            f"{name} of {folder} must be what was written; it has another hash. Export again."
        )
