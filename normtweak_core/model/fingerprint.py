"""Content hashes of a model folder: its config and each of its tensors; no torch."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.model.architecture import read_config
from normtweak_core.model.checkpoint import StoredTensor, read_header, stored_tensors

CHUNK = 1 << 22  # bytes read at a time
TENSORS = "tensors 1"  # what `tensor_digests` gives; another number where it gives something else
# Written by whoever saved the model, read by nobody who runs it. Who loads its tokenizer does read
# the version (transformers mends Mistral's by it): that counts with the tokenizer's files.
VOLATILE_KEYS = ("_name_or_path", "transformers_version")


@dataclass(frozen=True)
class ModelFingerprint:
    """What a model is, by content: never by path, name or time."""

    config_sha256: str
    tensors: dict[str, str]  # checkpoint name -> SHA-256 over dtype, shape and bytes
    sha256: str  # over the config's hash and all tensors

    def subset(self, prefix: str) -> str:
        """Return one hash over the tensors at or below ``prefix``, such as ``model.layers.3``.

        A checkpoint of the base model lacks the first component of the names in memory, so
        ``transformer.h.3`` also finds ``h.3`` where nothing is called ``transformer.h.3``.

        Raises:
            InputError: No tensor has that prefix.
        """
        shorter = prefix.partition(".")[2]
        for candidate in filter(None, (prefix, shorter)):
            below = candidate.rstrip(".") + "."
            names = [name for name in self.tensors if (name + ".").startswith(below)]
            if names:
                return self.of(names)
        raise InputError(
            f"the checkpoint must hold tensors named {prefix}.*; it holds none. "
            "Save the model again with save_pretrained."
        )

    def of(self, names: list[str]) -> str:
        """Return one hash over the named tensors, whatever their order.

        Raises:
            KeyError: A name is not in the checkpoint.
        """
        return _digest_lines(f"{self.tensors[name]}  {name}" for name in sorted(names))


# Of one weight file: tensor name -> SHA-256, as `tensor_digests` returns it.
Digests = Callable[[Path], Mapping[str, str]]


def fingerprint(folder: Path, digests: Digests | None = None) -> ModelFingerprint:
    """Return the hashes of a model folder, reading each weight file once in small pieces.

    Args:
        folder: The model.
        digests: Gives the digests of a file, from a memory of them for example; by default the file
            is read.

    Raises:
        InputError: A file is absent, truncated or damaged.
    """
    stored = stored_tensors(folder)
    files = sorted({tensor.file for tensor in stored.values()})
    found = {k: v for file in files for k, v in (digests or tensor_digests)(file).items()}
    tensors = {name: found[name] for name in sorted(stored)}
    config = {k: v for k, v in read_config(folder).items() if k not in VOLATILE_KEYS}
    canonical = json.dumps(config, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    config_sha256 = hashlib.sha256(canonical.encode()).hexdigest()
    lines = [f"{config_sha256}  config.json", *(f"{v}  {k}" for k, v in tensors.items())]
    return ModelFingerprint(config_sha256, tensors, _digest_lines(lines))


def tensor_digests(file: Path) -> dict[str, str]:
    """Return the hash of each tensor of a weight file: SHA-256 over dtype, shape and bytes.

    Raises:
        InputError: The file is truncated or damaged.
    """
    return {name: _digest(tensor) for name, tensor in read_header(file).items()}


def _digest(tensor: StoredTensor) -> str:
    """Return the SHA-256 over dtype, shape and raw bytes of one stored tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.end - tensor.start
        while left:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise InputError(
                    f"{tensor.file} must not change while it is read; it became shorter. "
                    "Run again once it is complete."
                )
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _digest_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
