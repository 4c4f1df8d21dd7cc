"""What the training of norms reports; no torch."""

from typing import Literal

from pydantic import BaseModel

# "no norms": no norm has a weight that could be trained (OLMo 1), which is no problem.
Outcome = Literal["kept", "rolled back", "no norms"]


class TweakReport(BaseModel, frozen=True):
    """The norm tweak of one block, judged on held-out windows."""

    lr: float
    held_out_before: float
    held_out_after: float  # with gains as rounded for export
    distance_before: float  # |output - target| / |target| on the same windows
    distance_after: float
    accepted: bool
    share: float  # part of the trained change that was kept; 0 where it was rolled back
    trained: bool = True  # False: the block has no norm with weights

    @property
    def outcome(self) -> Outcome:
        """What became of it."""
        return _outcome(self.trained, self.accepted)


class FinalTuneReport(BaseModel, frozen=True):
    """Divergence from the float model on held-out windows, in nats per token."""

    held_out_before: float
    held_out_after: float  # with gains as rounded for export
    accepted: bool
    trained: bool = True  # False: the model has no norm with weights

    @property
    def outcome(self) -> Outcome:
        """What became of it."""
        return _outcome(self.trained, self.accepted)

    def notes(self) -> list[str]:
        """Return what is good to know and asks for nothing: that it was undone."""
        if self.outcome != "rolled back":
            return []
        return [
            f"final tune rolled back (held-out divergence {self.held_out_before:.4g} -> "
            f"{self.held_out_after:.4g})"
        ]


def _outcome(trained: bool, accepted: bool) -> Outcome:
    if not trained:
        return "no norms"
    return "kept" if accepted else "rolled back"
