"""The facts of one run that every stage shares, and how a stage is declared.

Nothing here imports torch: a run in which everything is cached never does.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normtweak_core.export.payload import TOKENIZER_FILES
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.fingerprint import ModelFingerprint, fingerprint
from normtweak_core.model.layout import block_list
from normtweak_core.model.source import ModelFolder, resolve_device, resolve_source
from tasks.artifacts import file_sha256
from tasks.caching import StageSerializer, stage_key, stage_policy

# How every cached stage is declared: `@task(**STAGE)`. The flow passes its key as `key`.
STAGE: dict[str, Any] = {
    "cache_policy": stage_policy(),
    "persist_result": True,
    "result_serializer": StageSerializer(),
}


@dataclass(frozen=True)
class Job:
    """A resolved model and the machine it is worked on."""

    source: ModelFolder
    fingerprint: ModelFingerprint
    tokenizer_sha256: str
    model: ModelConfig
    device: str
    threads: int
    seed: int

    @property
    def folder(self) -> Path:
        """Folder of the float model."""
        return self.source.path

    @functools.cached_property
    def blocks(self) -> tuple[str, int]:
        """Checkpoint name of the block list, and the number of blocks."""
        return block_list(self.fingerprint.tensors)

    @functools.cached_property
    def outside_blocks_sha256(self) -> str:
        """Hash of all tensors outside the blocks."""
        inside = self.blocks[0] + "."
        return self.fingerprint.of(
            [n for n in self.fingerprint.tensors if not n.startswith(inside)]
        )

    def block_sha256(self, index: int) -> str:
        """Return the hash of one block's tensors."""
        return self.fingerprint.subset(f"{self.blocks[0]}.{index}")

    def key(
        self, name: str, *, parents: list[str], inputs: dict[str, Any], sources: list[str]
    ) -> str:
        """Return the cache key of a stage that computes on this job's device."""
        return stage_key(
            name,
            parents=parents,
            inputs=inputs | {"dtype": self.model.dtype},
            sources=sources,
            device=self.device,
            threads=self.threads,
        )


def open_job(model: ModelConfig, seed: int) -> Job:
    """Return the job of a recipe's model section.

    Raises:
        InputError: The model cannot be found or is not a float decoder.
    """
    source = resolve_source(model)
    names = [name for name in TOKENIZER_FILES if (source.path / name).is_file()]
    tokenizer = ",".join(f"{name}={file_sha256(source.path / name)}" for name in sorted(names))
    return Job(
        source=source,
        fingerprint=fingerprint(source.path),
        tokenizer_sha256=tokenizer,
        model=model,
        device=resolve_device(model.device),
        threads=int(os.environ["OMP_NUM_THREADS"]),
        seed=seed,
    )


def torch_dtype(name: str) -> Any:
    """Return the torch dtype called ``name``; imports torch."""
    import torch

    return getattr(torch, name)
