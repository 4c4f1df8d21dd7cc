"""The models that an evaluation measures: what each is by content, and how it is opened.

Nothing here imports torch until a model is opened.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from normtweak_core.errors import InputError
from normtweak_core.lazy import lazy
from tasks.engine.artifacts import content_hash
from tasks.engine.environment import state_root
from tasks.models.job import Job, torch_dtype
from tasks.results import ExportResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from normtweak_core.model.streaming import StreamedModel

exports = lazy("normtweak_core.export.loading")
quantized = lazy("normtweak_core.export.opening")
spreading = lazy("normtweak_core.spread")
streaming = lazy("normtweak_core.model.streaming")
torch = lazy("torch")
tokenizers = lazy("normtweak_core.model.tokenizer")


@dataclass(frozen=True)
class Subject:
    """A model to be measured; it is opened by each measurement that is not cached."""

    name: str  # for people
    kind: Literal["float", "export", "quantized"]  # export: of ours, beside its float model
    path: Path  # folder, or a GGUF file
    sha256: str  # of config and weights
    tokenizer_sha256: str
    dtype: str
    device: str
    source: Path | None = None  # of an export: folder of the float model, whose code runs it
    tokenizer_path: Path | None = None  # where the tokenizer lies elsewhere than the model

    def whole(self) -> "PreTrainedModel":
        """Return the model, in eval mode; whoever asks keeps it as long as it needs it.

        Where it does not fit on its device it is spread over what there is; what others have
        quantized has to fit.

        Raises:
            InputError: It cannot be opened.
        """
        dtype = torch_dtype(self.dtype)
        if self.kind == "float":
            return spreading.whole_or_spread(self.path, dtype, self.device)
        if self.kind == "export":
            return exports.whole_or_spread_export(self.path, self.source, dtype, self.device)
        return quantized.load_quantized(self.path, dtype, self.device)

    def streamed(self) -> "StreamedModel | PreTrainedModel":
        """Return the model, read block by block.

        What others have quantized is read whole, as their readers open whole files, and then walked
        block by block, so that it can be freed once its last block has run. A model that does more
        between its blocks than hand the hidden state on stays whole.

        Raises:
            InputError: It cannot be opened.
        """
        dtype = torch_dtype(self.dtype)
        try:
            if self.kind == "float":
                model = streaming.StreamedModel(self.path, dtype, self.device)
            elif self.kind == "export":
                model = exports.stream_export(self.path, self.source, dtype, self.device)
            else:
                model = streaming.HeldModel(self.whole())
            model.embed(torch.zeros(1, 2, dtype=torch.int64))
        except InputError:
            return self.whole()  # or what is wrong with it
        return model

    @functools.cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its own tokenizer.

        Raises:
            InputError: It has none that can be read.
        """
        if self.path.is_file():
            return tokenizers.load_tokenizer(self.path.parent, gguf_file=self.path.name)
        return tokenizers.load_tokenizer(self.tokenizer_path or self.path)

    @property
    def identity(self) -> dict[str, str]:
        """What a result depends on, as values of a key."""
        return {
            "model": self.sha256,
            "tokenizer": self.tokenizer_sha256,
            "kind": self.kind,
            "dtype": self.dtype,
        }


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
