"""What each stage returns: small references to files, never tensors.

Every reference checks its file when the record is read back, so that a missing, truncated or
altered file makes the cached record invalid and the stage runs again.
"""

from typing import Annotated

from pydantic import BaseModel

from tasks.artifacts import NOT_CONTENT, ArtifactRef


class CalibrationResult(BaseModel, frozen=True):
    """A calibration set with its table and its quality report."""

    windows: ArtifactRef
    table: ArtifactRef
    quality: ArtifactRef
    verdict: str
    reasons: list[str]


class BlockResult(BaseModel, frozen=True):
    """A finished block and the hashes of its output streams."""

    block: int
    weights: ArtifactRef
    report: ArtifactRef
    x_f_sha256: str
    x_q_sha256: str
    seconds: Annotated[float, NOT_CONTENT]


class FinalTuneResult(BaseModel, frozen=True):
    """Norm masters of the whole model; empty when the tune was rolled back."""

    norms: ArtifactRef
    report: ArtifactRef


class ExportResult(BaseModel, frozen=True):
    """An export folder; every payload file is checked when this record is read back."""

    folder: Annotated[str, NOT_CONTENT]  # relative to the state root
    export_sha256: str
    files: list[ArtifactRef]
    manifest: Annotated[ArtifactRef, NOT_CONTENT]  # holds the recipe, so it may change
    probe: ArtifactRef
    bits_per_weight: float
    size_bytes: int


class VerificationResult(BaseModel, frozen=True):
    """What the independent reader found."""

    report: ArtifactRef
    tensors_compared: int
    layers_compared: int
    logit_difference: float  # largest, as a fraction of the largest logit


class Evaluation(BaseModel, frozen=True):
    """Flat metric names and values."""

    metrics: dict[str, float]
