"""What ``normtweak.json`` says about an export: enough to verify the folder by itself.

``tensors`` holds, under the names a loaded model has, for every tensor that a reader must find:

* a quantized linear's ``weight``: the SHA-256 of the raw little-endian bytes, row-major, of
  ``QuantizedWeight.dequantize()`` rounded once to the export dtype (in float32 the product is
  exact for half-precision scales);
* any other tensor: the SHA-256 of its raw bytes as stored.

``files`` holds the SHA-256 of every payload file, and ``payload_sha256`` their common hash. The
manifest itself is outside the payload and may hold times.
"""

import hashlib
from collections.abc import Mapping
from importlib.metadata import version

import torch
from torch import Tensor

FORMAT_VERSION = 1
PACKAGES = ("torch", "transformers", "safetensors", "compressed-tensors")
PROBE_FILE = "verify/probe.safetensors"  # in a folder, so that nobody takes it for model weights
# Largest |difference| from the reference logits, as a fraction of their largest magnitude. The
# weights are equal bit for bit; this leaves room for kernels that sum in another order.
LOGIT_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def tensor_sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of the tensor's raw bytes, row-major."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy()).hexdigest()


def tensor_entry(tensor: Tensor, quantized: bool = False) -> dict[str, object]:
    """Return what the manifest says about one tensor."""
    return {
        "sha256": tensor_sha256(tensor),
        "shape": list(tensor.shape),
        "dtype": dtype_name(tensor.dtype),
        "quantized": quantized,
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
    details: Mapping[str, object],
) -> dict[str, object]:
    """Return the manifest; ``details`` are the caller's entries: recipe, lineage, block report."""
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
            "logit_tolerance": LOGIT_TOLERANCE[dtype],
            "tokenizer": None if tokenizer is None else dict(tokenizer),
        },
        "versions": versions(),
    }
    taken = own.keys() & details.keys()
    if taken:
        raise ValueError(f"details must not hold {', '.join(sorted(taken))}: the export writes it")
    return own | dict(details)
