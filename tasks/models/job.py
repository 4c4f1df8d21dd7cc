"""The facts of one run that every stage shares: a resolved model, and the machine.

Nothing here imports torch: a run in which everything is cached never does.
"""

import functools
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normtweak_core.calibration.hub_data import hub_data_revision
from normtweak_core.errors import VerificationError
from normtweak_core.experts.names import mixes_experts
from normtweak_core.export.foreign.source import BaseSource, read_base
from normtweak_core.export.payload import GENERATION_CONFIG, relative_name
from normtweak_core.lazy import lazy
from normtweak_core.model.architecture import read_config
from normtweak_core.model.checkpoint import stored_dtype
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.fingerprint import (
    TENSORS,
    ModelFingerprint,
    fingerprint,
    tensor_digests,
)
from normtweak_core.model.layout import block_list
from normtweak_core.model.source import (
    ModelFolder,
    model_context,
    resolve_device,
    resolve_source,
    with_dtype,
)
from normtweak_core.model.tokenizer_files import processor_files, tokenizer_files
from tasks.engine.artifacts import file_sha256, remembered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from normtweak_core.export.foreign.base import BaseWeights

bases = lazy("normtweak_core.export.foreign.base")


@dataclass(frozen=True)
class Job:
    """A resolved model and the machine it is worked on."""

    source: ModelFolder
    fingerprint: ModelFingerprint
    tokenizer_sha256: str  # of all that AutoTokenizer reads, and AutoProcessor
    generation_sha256: str | None  # of generation_config.json, where there is one
    model: ModelConfig  # its dtype is not auto any more
    device: str
    threads: int
    seed: int
    base: BaseSource | None = None  # what others have quantized, and the codes are taken from
    base_sha256: str | None = None
    _revisions: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """Folder of the float model."""
        return self.source.path

    @property
    def arithmetic(self) -> str:
        """What the float model and the streams are computed in, and what its weights are."""
        return f"{self.model.dtype}, of weights stored in {stored_dtype(self.folder)}"

    @functools.cached_property
    def context(self) -> int | None:
        """The longest window the model was made for; None: it has no limit."""
        return model_context(self.folder)

    @functools.cached_property
    def blocks(self) -> tuple[str, int]:
        """Checkpoint name of the block list, and the number of blocks."""
        return block_list(self.fingerprint.tensors)

    @functools.cached_property
    def mixes_experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return mixes_experts(self.fingerprint.tensors)

    @functools.cached_property
    def outside_blocks_sha256(self) -> str:
        """Hash of all tensors outside the blocks."""
        inside = self.blocks[0] + "."
        return self.fingerprint.of(
            [n for n in self.fingerprint.tensors if not n.startswith(inside)]
        )

    @property
    def tokenization_sha256(self) -> str:
        """Hash of the files beside config and weights that a result depends on."""
        text = f"{self.tokenizer_sha256},{self.generation_sha256}"
        return hashlib.sha256(text.encode()).hexdigest()

    def block_sha256(self, index: int) -> str:
        """Return the hash of one block's tensors."""
        return self.fingerprint.subset(f"{self.blocks[0]}.{index}")

    @property
    def of_base(self) -> dict[str, str]:
        """What decides a result that is made of the codes of a checkpoint, as values of a key."""
        return {} if self.base_sha256 is None else {"base": self.base_sha256}

    def base_weights(self) -> "BaseWeights | None":
        """Return what the checkpoint holds; None where there is none.

        Raises:
            InputError: It is of another model.
        """
        return None if self.base is None else bases.BaseWeights(self.base.folder, self.folder)

    def base_others(self) -> "Mapping[str, Tensor]":
        """Return what takes the place of the float model's other parameters, by full name."""
        base = self.base_weights()
        return {} if base is None else base.others

    def check_tokenizer(self) -> None:
        """Return if the tokenizer is still the one that keys and calibration stand for.

        Raises:
            VerificationError: A file of it has changed since the job was opened.
        """
        before, now = self.tokenizer_sha256.split(","), tokenizer_hash(self.folder).split(",")
        changed = sorted({entry.partition("=")[0] for entry in {*before} ^ {*now}})
        if changed:
            raise VerificationError(
                f"the tokenizer of {self.folder} must be the one this run began with; since then "
                f"{', '.join(changed)} changed, so that the export would hold another. Restore it, "
                "or start again."
            )

    def data_revision(self, path: str) -> str:
        """Return the commit of a hub data set, asked once: key and stage must mean the same one.

        Raises:
            InputError: Neither the hub nor its cache tells.
        """
        if path not in self._revisions:
            self._revisions[path] = hub_data_revision(path)
        return self._revisions[path]


def open_job(
    model: ModelConfig,
    seed: int,
    revisions: dict[str, str] | None = None,
    base: str | None = None,
) -> Job:
    """Return the job of a recipe's model section.

    Args:
        model: The section.
        seed: Of the recipe.
        revisions: Commits of hub data sets to read, by name; of others the newest is read.
        base: The checkpoint that the codes are taken from, as a recipe names it.

    Raises:
        InputError: The model cannot be found or is not a float decoder.
    """
    source = resolve_source(model)
    generation = source.path / GENERATION_CONFIG
    given = None if base is None else read_base(base)
    return Job(
        source=source,
        fingerprint=model_fingerprint(source.path),
        tokenizer_sha256=tokenizer_hash(source.path),
        generation_sha256=file_sha256(generation) if generation.is_file() else None,
        model=with_dtype(model, source.path),
        device=resolve_device(model.device),
        threads=int(os.environ["OMP_NUM_THREADS"]),
        seed=seed,
        base=given,
        base_sha256=None if given is None else model_fingerprint(given.folder).sha256,
        _revisions=dict(revisions or {}),
    )


def model_fingerprint(folder: Path) -> ModelFingerprint:
    """Return the hashes of a model folder; weight files that have not changed are not read again.

    Raises:
        InputError: A file is absent, truncated or damaged.
    """
    return fingerprint(folder, lambda file: remembered(file, TENSORS, tensor_digests))


def tokenizer_hash(folder: Path) -> str:
    """Return the hashes of a folder's tokenizer files, and the one entry it reads of config.json.

    And those of the files of a processor, where there is one.

    AutoTokenizer tells by `transformers_version` whether a Mistral tokenizer is to be mended. The
    model's fingerprint leaves it out, so that who saved the model does not redo its blocks.
    """
    described = (folder / "config.json").is_file()  # not where a tokenizer lies by itself
    version = read_config(folder).get("transformers_version") if described else None
    files = tokenizer_files(folder) + processor_files(folder)
    entries = [f"{relative_name(path, folder)}={file_sha256(path)}" for path in files]
    return ",".join([*entries, f"transformers_version={version}"])


def torch_dtype(name: str) -> Any:
    """Return the torch dtype called ``name``; imports torch."""
    import torch

    return getattr(torch, name)
