"""What each stage returns: small references to files, never tensors.

Every reference checks its file when the record is read back, so that a missing, truncated or
altered file makes the cached record invalid and the stage runs again.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.engine.artifacts import NOT_CONTENT, ArtifactRef, Result
from tasks.engine.environment import state_root


class CalibrationResult(Result, frozen=True):
    """A calibration set with its table and its quality report.

    Raises:
        ValueError: At validation, when the table is not what its schema says.
    """

    windows: ArtifactRef
    table: ArtifactRef
    quality: ArtifactRef
    vocab_size: int  # every id of the table lies below
    verdict: str
    reasons: list[str]
    seconds: Annotated[float, NOT_CONTENT]

    @property
    def identity(self) -> str:
        """Its token ids; table and report only tell of them."""
        return self.windows.sha256

    @model_validator(mode="after")
    def _has_a_valid_table(self) -> Self:
        from tasks.tables.calibration import calibration_table

        calibration_table(self.vocab_size).read(state_root() / self.table.path)
        return self


class BlockResult(Result, frozen=True):
    """A finished block and the hashes of its output streams."""

    block: int
    weights: ArtifactRef
    report: ArtifactRef
    drift: ArtifactRef  # of its channels, after quantizing, the norm tweak and the training
    x_f_sha256: str
    x_q_sha256: str
    seconds: Annotated[float, NOT_CONTENT]


class TrialResult(Result, frozen=True):
    """The linears of a block at each width that they may get."""

    block: int
    weights: ArtifactRef


class SensitivityResult(Result, frozen=True):
    """What the widths of a block's linears cost: a list of `GroupCost`."""

    block: int
    costs: ArtifactRef


class WidthsResult(Result, frozen=True):
    """The widths of a model, and what they cost: an `Allotment`."""

    widths: list[dict[str, int]]  # of each block, by the names of its linears
    allotment: ArtifactRef
    table: ArtifactRef

    @property
    def identity(self) -> list[dict[str, int]]:
        """The widths, whatever budget they came from."""
        return self.widths


class FinalTuneResult(Result, frozen=True):
    """Norm masters of the whole model; empty when the tune was rolled back."""

    norms: ArtifactRef
    scales: ArtifactRef | None = None  # of the linears, where they were tuned too
    report: ArtifactRef
    drift: ArtifactRef  # of the channels behind each block, with the norms that were kept
    seconds: Annotated[float, NOT_CONTENT]


class ExportResult(Result, frozen=True):
    """An export folder; its files are checked when this record is read back."""

    folder: Annotated[str, NOT_CONTENT]  # relative to the state root
    export_sha256: str
    dtype: str  # in which readers open it
    files: list[ArtifactRef]  # the payload
    beside: list[ArtifactRef] = Field(
        default_factory=list
    )  # what other programs open: the GGUF file of a ternary model
    manifest: Annotated[ArtifactRef, NOT_CONTENT]  # names the recipe that came first
    probe: ArtifactRef
    bits_per_weight: float
    size_bytes: int


class RefusedExport(Result, frozen=True):
    """What is there instead of an export whose float type does not hold the model."""

    dtype: str
    why: str
    holds: list[str]  # float types in which the same was tried and holds


class FloatType(Result, frozen=True):
    """The float type of an export, and those that were passed over for it."""

    dtype: str
    refused: dict[str, str] = Field(default_factory=dict)  # why, in the order tried
    note: str = ""  # what a person should know of it

    @property
    def identity(self) -> str:
        """The float type, however it was come by."""
        return self.dtype

    def in_words(self) -> str:
        """Return the float type, and why no other."""
        passed = "".join(f"; not {name}: {why}" for name, why in self.refused.items())
        coarse = " (8 significant bits, which can erase a small norm tweak)"
        note = f"; {self.note}" if self.note else ""
        return f"{self.dtype}{coarse if self.dtype == 'bfloat16' else ''}{note}{passed}"

    def tags(self) -> dict[str, str]:
        """Return it as the registry keeps it."""
        refused = "; ".join(f"{name}: {why}" for name, why in self.refused.items())
        return {"export_dtype": self.dtype, "float_types_refused": refused[:4000] or "none"}


class VerificationResult(Result, frozen=True):
    """What the independent reader found."""

    report: ArtifactRef
    tensors_compared: int
    layers_compared: int
    logit_difference: float  # largest, as a fraction of the largest logit


class Evaluation(Result, frozen=True):
    """Flat metric names and values, and what they were computed from, window by window."""

    metrics: dict[str, float]
    details: ArtifactRef


class TaskEvaluation(Result, frozen=True):
    """A model's score of every item of a task, as `TaskScores`."""

    task: str
    scores: ArtifactRef
