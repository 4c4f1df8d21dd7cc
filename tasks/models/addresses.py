"""From what a user calls a model to evaluate to something that can be measured.

A folder, a hub id, a reference model, a GGUF file, or a registered version, whoever has made it.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normtweak_core.errors import InputError
from normtweak_core.evaluate.size import quantized_storage
from normtweak_core.export.payload import payload_bytes
from normtweak_core.model.architecture import quantization_method, read_config
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.foreign_code import refuse_foreign_tokenizer
from normtweak_core.model.source import (
    REFERENCE_PREFIX,
    ModelFolder,
    model_context,
    resolve_source,
)
from normtweak_core.paths import given_path
from tasks.engine.artifacts import file_sha256
from tasks.models.job import model_fingerprint, tokenizer_hash
from tasks.models.subjects import Subject
from tasks.registry.names import REGISTERED, parse_address
from tasks.registry.reachable import VARIABLE, check_registry

MANIFEST = "normtweak.json"


@dataclass(frozen=True)
class MeasuredModel:
    """A model that is here, and what its files say about it."""

    subject: Subject
    source: ModelFolder  # of a GGUF file: the folder it lies in
    size_bytes: int
    bits_per_weight: float | None  # None: nothing says how it is quantized

    @property
    def context(self) -> int | None:
        """The longest window the model was made for; None: no limit, or no config tells."""
        folder = self.source.path
        return model_context(folder) if (folder / "config.json").is_file() else None

    @property
    def text_source(self) -> ModelFolder:
        """The model whose text it can be measured on: the reference model it was made from."""
        lineage = _manifest(self.source.path).get("lineage", {})
        made_from = lineage.get("source_model", self.source.name)
        if made_from.startswith(REFERENCE_PREFIX):
            return resolve_source(ModelConfig(source=made_from))
        return self.source


@contextlib.contextmanager
def measured_model(address: str, dtype: str, device: str) -> Iterator[MeasuredModel]:
    """Yield the model at an address; a copy from a registry lives as long as the block.

    Args:
        address: Folder, hub id, reference:NAME, models:/NAME/VERSION, models:/NAME@ALIAS or a
            GGUF file.
        dtype: What it is to compute in; auto: a quantized model in the float type of its
            config.json, any other in float32.
        device: Where.

    Raises:
        InputError: There is no such model, or it cannot be opened here.
    """
    if address.startswith(REGISTERED):
        wanted, uri = parse_address(address), os.environ[VARIABLE]
        check_registry(uri)
        from tasks.registry.registered import files_of  # MLflow, for those who have named a version

        with files_of(wanted, uri) as files:
            folder, tokenizer = _folders(files, address)
            yield _in_folder(ModelFolder(folder, address, None), tokenizer, dtype, device)
        return
    path = given_path(address, "model.source")
    if path.suffix.lower() == ".gguf":
        yield _gguf(path, address, dtype, device)
        return
    source = resolve_source(ModelConfig(source=address))
    yield _in_folder(source, source.path, dtype, device)


def _in_folder(source: ModelFolder, tokenizer: Path, dtype: str, device: str) -> MeasuredModel:
    refuse_foreign_tokenizer(tokenizer)
    quantized = quantization_method(source.path) is not None
    if dtype == "auto":
        dtype = _own_dtype(source.path) if quantized else "float32"
    subject = Subject(
        name=source.name,
        kind="quantized" if quantized else "float",
        path=source.path,
        sha256=model_fingerprint(source.path).sha256,
        tokenizer_sha256=tokenizer_hash(tokenizer),
        dtype=dtype,
        device=device,
        tokenizer_path=tokenizer,
    )
    bits = quantized_storage(source.path).bits_per_weight if quantized else None
    return MeasuredModel(subject, source, payload_bytes(source.path), bits)


def _own_dtype(folder: Path) -> str:
    """Return the float type that a folder is opened in; float32 where its config names none."""
    config = read_config(folder)
    named = config.get("dtype") or config.get("torch_dtype")
    return named if named in ("float16", "bfloat16") else "float32"


def _gguf(path: Path, address: str, dtype: str, device: str) -> MeasuredModel:
    if not path.is_file():
        raise InputError(f"a GGUF model must be a file; {address} does not exist: check the path.")
    digest = file_sha256(path)
    subject = Subject(
        name=address,
        kind="quantized",
        path=path.resolve(),
        sha256=digest,
        tokenizer_sha256=digest,
        dtype="float32" if dtype == "auto" else dtype,
        device=device,
    )
    source = ModelFolder(path.resolve().parent, address, None)
    return MeasuredModel(subject, source, path.stat().st_size, None)


def _folders(found: Path, address: str) -> tuple[Path, Path]:
    """Return where in a logged model the Hugging Face folder and the tokenizer lie."""
    for folder in (found, found / "model"):
        if (folder / "config.json").is_file():
            beside = found / "components" / "tokenizer"  # where mlflow.transformers puts it
            own = (folder / "tokenizer_config.json").is_file()
            return folder, folder if own or not beside.is_dir() else beside
    raise InputError(
        f"{address} must hold a Hugging Face folder; there is no config.json in its files: only "
        "language models of transformers can be evaluated."
    )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
