"""Which files of an export folder are its payload, their hash, and their size; no torch."""

import hashlib
from pathlib import Path

GENERATION_CONFIG = "generation_config.json"
CONFIG_FILES = ("config.json", GENERATION_CONFIG)
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
TOKENIZER_PATTERNS = ("*.tiktoken",)
WEIGHT_PATTERNS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
)


def payload_files(folder: Path) -> list[Path]:
    """Return weights, their index, configs and tokenizer files, sorted by relative path."""
    found = [folder / name for name in CONFIG_FILES]
    found += [path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)]
    files = [path for path in found if path.is_file()] + tokenizer_files(folder)
    return sorted(files, key=lambda path: path.name)


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder that make its tokenizer, sorted by name."""
    found = [folder / name for name in TOKENIZER_FILES]
    found += [path for pattern in TOKENIZER_PATTERNS for path in folder.glob(pattern)]
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
