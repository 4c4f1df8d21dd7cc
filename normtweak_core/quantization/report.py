"""What happened to one block: the rows that users, artifacts and the registry read."""

from typing import Literal

from pydantic import BaseModel, Field

from normtweak_core.finetune.report import BlockTraining
from normtweak_core.tweak.report import TweakReport


class LayerReport(BaseModel, frozen=True):
    """One quantized linear."""

    layer: str
    bits: int
    percdamp: float  # damping that was needed; 0.0 for round to nearest
    damping_raised: bool
    ridge: float  # of the weight's correction, that was needed; 0.0 without one
    ridge_raised: bool
    dead_columns: int
    weight_error: float  # |W - Q| / |W|
    # |(W* - Q) X| / |W* X| over calibration tokens, W* the corrected weight; None where no
    # statistics were needed (RTN without propagation), 0.0 where W* X is zero.
    output_error: float | None


class ExpertReport(BaseModel, frozen=True):
    """One expert of a mixture."""

    expert: str
    tokens: int  # calibration tokens that are routed to it
    statistics: Literal["routed tokens", "all tokens", "none"]  # what its Hessians come from

    @property
    def few(self) -> bool:
        """Whether they were too few for its own statistics."""
        return self.statistics != "routed tokens"


class BlockReport(BaseModel, frozen=True):
    """One block; drifts are |x_q - x_f| / |x_f| of its output stream."""

    block: int
    layers: list[LayerReport]
    left_float: list[str]
    tweak: TweakReport | None
    drift_quantized: float  # after the linears were quantized
    drift_tweaked: float  # after the norm tweak
    mean_shift_quantized: float  # mean over channels of |mean(x_q - x_f)|
    mean_shift_tweaked: float
    # Of a mixture, where statistics were needed. Left out where there are none.
    experts: list[ExpertReport] = Field(default=[], exclude_if=lambda experts: not experts)
    # Where the block was trained.
    training: BlockTraining | None = Field(default=None, exclude_if=lambda one: one is None)
    drift_trained: float | None = Field(default=None, exclude_if=lambda one: one is None)
    # Share of their (token, expert) pairs that the float router makes too.
    routed_alike: float | None = Field(default=None, exclude_if=lambda share: share is None)

    @property
    def drift_behind(self) -> float:
        """Drift behind the block as it is passed on."""
        return self.drift_tweaked if self.drift_trained is None else self.drift_trained

    def problems(self) -> list[str]:
        """Return what a person must act on, one sentence each."""
        found = [
            f"block {self.block}: damping of {row.layer} raised to {row.percdamp:g}"
            for row in self.layers
            if row.damping_raised
        ]
        found += [
            f"block {self.block}: ridge of {row.layer} raised to {row.ridge:g}"
            for row in self.layers
            if row.ridge_raised
        ]
        return found + [f"block {self.block}: {name} left in float" for name in self.left_float]

    def notes(self) -> list[str]:
        """Return what is good to know and asks for nothing.

        Experts without statistics of their own, and what was undone, having not helped.
        """
        found = []
        if few := [f"{one.expert} ({one.tokens})" for one in self.experts if one.few]:
            source = next(one.statistics for one in self.experts if one.few)
            what = "rounded to nearest" if source == "none" else f"statistics of {source}"
            found = [f"block {self.block}: experts with few tokens, {what}: {', '.join(few)}"]
        if self.tweak is not None and self.tweak.outcome == "rolled back":
            found.append(
                f"block {self.block}: norm tweak rolled back (held-out loss "
                f"{self.tweak.held_out_before:.4g} -> {self.tweak.held_out_after:.4g}, distance "
                f"{self.tweak.distance_before:.4g} -> {self.tweak.distance_after:.4g})"
            )
        if self.training is not None and not self.training.accepted:
            found.append(
                f"block {self.block}: training undone, which came no nearer to the float output "
                f"(held-out distance {self.training.distance_before:.4g})"
            )
        return found
