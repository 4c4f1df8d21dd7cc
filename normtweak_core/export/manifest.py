"""What ``normtweak.json`` says about an export: enough to verify the folder by itself.

``tensors`` holds, under the names a loaded model has, for every tensor that a reader must find:

* a quantized linear's ``weight``: the SHA-256 of the raw little-endian bytes, row-major, of
  ``QuantizedWeight.dequantize()`` rounded once to the export dtype (in float32 the product is
  exact for half-precision scales), and in ``scales_sha256`` that of its scales in the export dtype,
  [out, groups]: a difference there tells wrong scales from wrong codes. The weight of a Conv1D
  is [in, out], and its scales are as the format lays them out;
* any other tensor, and every tensor of a bitnet export, whose readers keep the codes packed: the
  SHA-256 of its raw bytes as stored.

``probe`` says how the tensors of `PROBE_FILE` are compared. Logits: the largest difference; of an
export whose linears round what they read the mean one, because readers differ at rounding
boundaries and the model amplifies that. ``layers`` is there for them: each on an input of its own.

``calibration_sample``, where there is one, holds ids of the text that the model was calibrated or
trained on and what they decode to. Those who made the text wrote it down: unlike the probe, which
was asked of the float model's folder when the export was written, it tells when the tokenizer there
was by then another model's.

``files`` holds the SHA-256 of every payload file, and ``payload_sha256`` their common hash. The
manifest itself is outside the payload and may hold times.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch
from torch import Tensor

from normtweak_core.export.verification.layer_probe import KEPT_OUTPUTS, LAYER_TOLERANCE

FORMAT_VERSION = 1
PACKAGES = ("torch", "transformers", "safetensors", "compressed-tensors")
PROBE_FILE = "verify/probe.safetensors"  # in a folder, so that nobody takes it for model weights
# Largest |difference| from the reference logits, as a fraction of their largest magnitude. The
# weights are equal bit for bit; this leaves room for kernels that sum in another order.
LOGIT_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
# Where activations are rounded: the mean |difference|, as a fraction of the largest reference
# logit. Unrelated logits reach about 0.3. Measured on random ternary models of 2 to 12 blocks,
# which amplify more than trained ones: float32 0, on this very machine; float16 up to 0.04,
# bfloat16 up to 0.05.
ROUNDED_LOGIT_TOLERANCE = {"float32": 5e-2, "float16": 1e-1, "bfloat16": 1.5e-1}


def tensor_sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of the tensor's raw bytes, row-major."""
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the tensor's raw bytes, row-major."""
    flat = tensor.detach().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # a single number may have any stride
    return memoryview(flat.view(torch.uint8).numpy())


def tensor_entry(tensor: Tensor, quantized: bool = False) -> dict[str, object]:
    """Return what the manifest says about one tensor."""
    return {
        "sha256": tensor_sha256(tensor),
        "shape": list(tensor.shape),
        "dtype": dtype_name(tensor.dtype),
        "quantized": quantized,
    }


def quantized_entry(weight: Tensor, scales: Tensor) -> dict[str, object]:
    """Return what the manifest says about a linear whose reader finds a dense weight.

    Args:
        weight: As dequantized, in the export dtype.
        scales: In the export dtype, [out, groups], whatever the layout of the format.
    """
    return tensor_entry(weight, quantized=True) | {"scales_sha256": tensor_sha256(scales)}


def stack_entry(
    sha256: str, shape: Sequence[int], dtype: torch.dtype, linears: Sequence[Mapping[str, str]]
) -> dict[str, object]:
    """Return what the manifest says about quantized linears that a reader finds in one tensor.

    Args:
        sha256: Of the tensor, as dequantized, in the export dtype.
        shape: Its own.
        dtype: The export dtype.
        linears: Those in it, from top to bottom: under which name they are ``stored``, and the
            ``scales_sha256`` as `quantized_entry` has it.
    """
    return {
        "sha256": sha256,
        "shape": list(shape),
        "dtype": dtype_name(dtype),
        "quantized": True,
        "linears": [dict(one) for one in linears],
    }


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name config.json uses for a dtype, such as ``float16``."""
    return str(dtype).removeprefix("torch.")


def versions() -> dict[str, str]:
    """Return the versions of the packages that shape an export."""
    return {name: version(name) for name in PACKAGES}


def build_manifest(
    *,
    form: str,
    scheme: Mapping[str, object],
    dtype: str,
    tensors: Mapping[str, object],
    files: Mapping[str, str],
    payload_sha256: str,
    tokenizer: Mapping[str, object] | None,
    bits_per_weight: float,
    size_bytes: int,
    consumers: Mapping[str, object] | None,
    details: Mapping[str, object],
) -> dict[str, object]:
    """Return the manifest; ``details`` are the caller's entries: recipe, lineage, block report.

    ``consumers`` says, where there is more than one, which program opens which file, or why not.
    """
    own: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        "export": {"format": form, "dtype": dtype, **scheme},
        "bits_per_weight": bits_per_weight,
        "size_bytes": size_bytes,
        "payload_sha256": payload_sha256,
        "files": dict(files),
        "tensors": dict(tensors),
        "probe": {
            "file": PROBE_FILE,
            "tokenizer": None if tokenizer is None else dict(tokenizer),
            **_tolerances(form, scheme, dtype),
        },
        "versions": versions(),
    }
    if consumers is not None:
        own["consumers"] = dict(consumers)
    taken = own.keys() & details.keys()
    if taken:
        raise ValueError(f"details must not hold {', '.join(sorted(taken))}: the export writes it")
    return own | dict(details)


def _tolerances(form: str, scheme: Mapping[str, object], dtype: str) -> dict[str, object]:
    """Return how closely a reader must agree."""
    if form != "bitnet" and "activation_bits" not in scheme:
        return {"logit_tolerance": LOGIT_TOLERANCE[dtype]}
    return {
        "logit_statistic": "mean",
        "logit_tolerance": ROUNDED_LOGIT_TOLERANCE[dtype],
        "layers": {"tolerance": LAYER_TOLERANCE[dtype], "kept_outputs": KEPT_OUTPUTS},
    }
