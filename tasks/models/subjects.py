"""The models that an evaluation measures: what each is by content, and how it is opened.

Nothing here imports torch until a model is opened.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.engine.artifacts import content_hash
from tasks.engine.caching import stage_key
from tasks.engine.environment import state_root
from tasks.models.job import Job, torch_dtype
from tasks.results import ExportResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Modules that open a model, by the kind of it: they count in the key of every measurement.
OPENERS = {
    "float": "normtweak_core.model.loading",
    "export": "normtweak_core.export.loading",
    "quantized": "normtweak_core.export.opening",
}


@dataclass(frozen=True)
class Subject:
    """A model to be measured; it is opened when the first measurement is not cached."""

    name: str  # for people
    kind: Literal["float", "export", "quantized"]  # export: of ours, beside its float model
    path: Path  # folder, or a GGUF file
    sha256: str  # of config and weights
    tokenizer_sha256: str
    dtype: str
    device: str
    source: Path | None = None  # of an export: folder of the float model, whose code runs it
    tokenizer_path: Path | None = None  # where the tokenizer lies elsewhere than the model

    @functools.cached_property
    def model(self) -> "PreTrainedModel":
        """The model in memory, in eval mode.

        Raises:
            InputError: It cannot be opened.
        """
        dtype = torch_dtype(self.dtype)
        if self.kind == "float":
            from normtweak_core.model.loading import load_causal_lm

            return load_causal_lm(self.path, dtype, self.device)
        if self.kind == "export":
            from normtweak_core.export.loading import load_export

            return load_export(self.path, self.source, dtype, self.device)
        from normtweak_core.export.opening import load_quantized

        return load_quantized(self.path, dtype, self.device)

    @functools.cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its own tokenizer.

        Raises:
            InputError: It has none that can be read.
        """
        from normtweak_core.model.tokenizer import load_tokenizer

        if self.path.is_file():
            return load_tokenizer(self.path.parent, gguf_file=self.path.name)
        return load_tokenizer(self.tokenizer_path or self.path)

    @property
    def identity(self) -> dict[str, str]:
        """What a result depends on, as values of a key."""
        return {
            "model": self.sha256,
            "tokenizer": self.tokenizer_sha256,
            "kind": self.kind,
            "dtype": self.dtype,
        }

    def key(
        self, name: str, inputs: dict[str, Any], sources: list[str], beside: "Subject | None" = None
    ) -> str:
        """Return the key of a measurement of this model, or of it beside another.

        Args:
            name: Of the stage.
            inputs: What else is read.
            sources: Modules that measure.
            beside: The other model, if any.
        """
        both = [self] if beside is None else [self, beside]
        return stage_key(
            name,
            parents=[],
            inputs=inputs | {"models": [one.identity for one in both]},
            sources=[*sources, *(OPENERS[one.kind] for one in both)],
            device=self.device,
            threads=int(os.environ["OMP_NUM_THREADS"]),
        )


def float_subject(job: Job) -> Subject:
    """Return the float model of a run."""
    return Subject(
        name=job.source.name,
        kind="float",
        path=job.folder,
        sha256=job.fingerprint.sha256,
        tokenizer_sha256=job.tokenizer_sha256,
        dtype=job.model.dtype,
        device=job.device,
    )


def export_subject(job: Job, export: ExportResult) -> Subject:
    """Return an export of a run."""
    return Subject(
        name=export.folder.rpartition("/")[2],
        kind="export",
        path=state_root() / export.folder,
        sha256=content_hash(export),
        tokenizer_sha256=job.tokenizer_sha256,  # verified to be the float model's
        dtype=export.dtype,  # what its readers compute in
        device=job.device,
        source=job.folder,
    )
