"""What the training of norms reports; no torch."""

from pydantic import BaseModel


class TweakReport(BaseModel, frozen=True):
    """The norm tweak of one block, judged on held-out windows."""

    lr: float
    held_out_before: float
    held_out_after: float  # with gains as rounded for export
    distance_before: float  # |output - target| / |target| on the same windows
    distance_after: float
    accepted: bool
    share: float  # part of the trained change that was kept; 0 where it was rolled back


class FinalTuneReport(BaseModel, frozen=True):
    """Divergence from the float model on held-out windows, in nats per token."""

    held_out_before: float
    held_out_after: float  # with gains as rounded for export
    accepted: bool
