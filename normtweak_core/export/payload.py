"""Which files of an export folder are its payload, their hash, and their size; no torch."""

import hashlib
from pathlib import Path

CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
)
WEIGHT_PATTERNS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
)


def payload_files(folder: Path) -> list[Path]:
    """Return weights, their index, configs and tokenizer files, sorted by relative path."""
    names = [*CONFIG_FILES, *TOKENIZER_FILES]
    found = [folder / name for name in names]
    found += [path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)]
    found += folder.glob("*.tiktoken")
    return sorted((path for path in found if path.is_file()), key=lambda path: path.name)


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every payload file by its relative path."""
    return {path.name: file_sha256(path) for path in payload_files(folder)}


def payload_sha256(folder: Path) -> str:
    """Return the SHA-256 of the lines ``<sha256>  <relative path>`` of the payload."""
    return hash_lines(file_hashes(folder))


def payload_bytes(folder: Path) -> int:
    """Return the size of the payload."""
    return sum(path.stat().st_size for path in payload_files(folder))


def hash_lines(hashes: dict[str, str]) -> str:
    """Return the SHA-256 of ``<sha256>  <relative path>`` lines, sorted by path."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
