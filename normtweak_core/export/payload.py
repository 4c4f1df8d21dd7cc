"""Which files of an export folder are its payload, their hash, and their size; no torch."""

import hashlib
from pathlib import Path

from normtweak_core.model.tokenizer_files import processor_files, tokenizer_files

GENERATION_CONFIG = "generation_config.json"
CONFIG_FILES = ("config.json", GENERATION_CONFIG)
WEIGHT_PATTERNS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
)


def payload_files(folder: Path) -> list[Path]:
    """Return weights, index, configs, files of tokenizer and processor, sorted by relative path."""
    found = [folder / name for name in CONFIG_FILES]
    found += [path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)]
    files = [path for path in found if path.is_file()]
    files += tokenizer_files(folder) + processor_files(folder)
    return sorted(files, key=lambda path: relative_name(path, folder))


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every payload file by its relative path."""
    return {relative_name(path, folder): file_sha256(path) for path in payload_files(folder)}


def payload_sha256(folder: Path) -> str:
    """Return the SHA-256 of the lines ``<sha256>  <relative path>`` of the payload."""
    return hash_lines(file_hashes(folder))


def payload_bytes(folder: Path) -> int:
    """Return the size of the payload."""
    return sum(path.stat().st_size for path in payload_files(folder))


def relative_name(path: Path, folder: Path) -> str:
    """Return what a file is called in hashes and manifests: its path within the folder."""
    return path.relative_to(folder).as_posix()


def hash_lines(hashes: dict[str, str]) -> str:
    """Return the SHA-256 of ``<sha256>  <relative path>`` lines, sorted by path."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
