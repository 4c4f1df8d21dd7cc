"""One GGUF file, written tensor by tensor, and what the manifest says of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from normtweak_core.export.folder import sync
from normtweak_core.export.gguf.containers import CONTAINERS
from normtweak_core.export.gguf.tokenizer import (
    add_chat_templates,
    add_tokenizer,
    describe_tokenizer,
)
from normtweak_core.export.manifest import tensor_sha256
from normtweak_core.export.payload import file_sha256
from normtweak_core.export.verification.tokenizer_probe import chat_templates
from normtweak_core.model.tokenizer import load_tokenizer
from normtweak_core.model.tokenizer_files import tokenizer_files

FOLDER = "gguf"  # outside the payload


class GgufObstacle(Exception):  # noqa: N818  (control flow, not a failure)
    """Why this model cannot be written, as a clause."""


@dataclass(frozen=True)
class Planned:
    """A tensor that the file is to hold."""

    name: str
    kind: str  # of `CONTAINERS`
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """What it takes, without padding."""
        rows = math.prod(self.shape[:-1])
        return rows * CONTAINERS[self.kind].row_bytes(self.shape[-1])


@dataclass(frozen=True)
class Stored:
    """A tensor as the file holds it."""

    data: NDArray[Any]  # numbers, or the bytes of blocks
    values: Float[Tensor, "..."]  # float32: what a reader must make of it


@dataclass(frozen=True)
class GgufRecord:
    """What the manifest says about the file."""

    file: str  # relative to the export
    type: str  # of most quantized weights
    architecture: str
    sha256: str
    size_bytes: int
    tokenizer: str | None  # how llama.cpp runs it; None: the file takes and gives token ids
    # Of each tensor: its type, shape and the SHA-256 of its values in float32.
    tensors: Mapping[str, Mapping[str, Any]]
    # Of weights that are not those of the export, as `error_in_words` tells it; None: all are.
    error: Mapping[str, Any] | None = None


class GgufFile:
    """A file on its way."""

    def __init__(self, folder: Path, architecture: str, kind: str, vocab_size: int):
        """Begin the file of an export.

        Args:
            folder: The export, whose payload is there.
            architecture: Of llama.cpp.
            kind: Type of most quantized weights, which the file is named after.
            vocab_size: Rows of the embedding.
        """
        self._folder, self._kind = folder, kind
        self._name = f"{FOLDER}/model-{kind}.gguf"
        path = folder / self._name
        path.parent.mkdir(exist_ok=True)
        self._tokenizer = describe_tokenizer(folder, vocab_size)
        self.writer = gguf.GGUFWriter(path, architecture)
        self.writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES.get(kind, f"MOSTLY_{kind}")])
        self.writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        self.writer.add_vocab_size(vocab_size)

    def write(self, contents: Sequence[Planned], tensors: Iterator[Stored]) -> GgufRecord:
        """Return what was written, once it is on the disk.

        The table of contents comes first, so that memory holds one tensor at a time.

        Args:
            contents: Of the file, in order.
            tensors: The same, made when they are written.
        """
        writer, path = self.writer, self._folder / self._name
        add_tokenizer(writer, self._tokenizer)
        if tokenizer_files(self._folder):
            add_chat_templates(writer, chat_templates(load_tokenizer(self._folder)))
        for planned in contents:
            kind = gguf.GGMLQuantizationType[planned.kind]
            writer.add_tensor_info(
                planned.name, planned.shape, np.dtype(np.float32), planned.num_bytes, kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        entries = {}
        for planned, stored in zip(contents, tensors, strict=True):
            assert stored.data.nbytes == planned.num_bytes, planned.name
            writer.write_tensor_data(stored.data)
            entries[planned.name] = {
                "type": planned.kind,
                "shape": list(planned.shape),
                "sha256": tensor_sha256(stored.values),
            }
        writer.close()
        sync(path)
        return GgufRecord(
            file=self._name,
            type=self._kind,
            architecture=writer.arch,
            sha256=file_sha256(path),
            size_bytes=path.stat().st_size,
            tokenizer=None if self._tokenizer is None else "gpt2",
            tensors=entries,
        )


_FILE_TYPES = {"Q3_K": "MOSTLY_Q3_K_M", "Q4_K": "MOSTLY_Q4_K_M"}
