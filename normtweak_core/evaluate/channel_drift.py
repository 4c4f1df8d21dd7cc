"""What drift did to each channel behind each block at one stage of a run; no torch.

Source: Li et al. 2023, Norm Tweaking, https://arxiv.org/abs/2309.02784: its loss compares mean and
variance of each channel, and its Figure 1 shows how they part from those of the float model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from safetensors.numpy import load_file


@dataclass(frozen=True)
class ChannelDrift:
    """Statistics over the calibration tokens; variances are divided by the number of tokens."""

    mean_float: Float64[np.ndarray, "blocks channels"]
    variance_float: Float64[np.ndarray, "blocks channels"]
    mean: Float64[np.ndarray, "blocks channels"]  # of the quantized stream
    variance: Float64[np.ndarray, "blocks channels"]
    square_error: Float64[np.ndarray, "blocks channels"]  # mean of (x_q - x_f)^2

    @classmethod
    def read(cls, files: Sequence[Path], stage: str) -> "ChannelDrift":
        """Return one stage of consecutive blocks, from the files that `save_drift` wrote."""
        found = [load_file(file) for file in files]
        return cls(
            **{
                field.name: np.concatenate([one[f"{stage}.{field.name}"] for one in found])
                for field in fields(cls)
            }
        )

    def mean_shift(self) -> Float64[np.ndarray, "blocks channels"]:
        """Return the mean of x_q less that of x_f, in standard deviations of x_f.

        NaN where the float channel is constant.
        """
        deviation = np.sqrt(self.variance_float)
        return _ratio(self.mean - self.mean_float, deviation)

    def spread(self) -> Float64[np.ndarray, "blocks channels"]:
        """Return the standard deviation of x_q as a multiple of that of x_f.

        NaN where the float channel is constant.
        """
        return _ratio(np.sqrt(self.variance), np.sqrt(self.variance_float))

    def relative_norm(self) -> Float64[np.ndarray, " blocks"]:
        """Return |x_q - x_f| / |x_f| over all tokens and channels."""
        reference = (self.mean_float**2 + self.variance_float).sum(axis=1)
        return np.sqrt(self.square_error.sum(axis=1) / reference)

    def channel_loss(self) -> Float64[np.ndarray, " blocks"]:
        """Return L_dist: |difference of means| + |difference of variances|, mean over channels."""
        means = np.abs(self.mean - self.mean_float)
        return (means + np.abs(self.variance - self.variance_float)).mean(axis=1)


def _ratio(
    value: Float64[np.ndarray, "blocks channels"], unit: Float64[np.ndarray, "blocks channels"]
) -> Float64[np.ndarray, "blocks channels"]:
    return np.divide(value, unit, out=np.full_like(value, np.nan), where=unit > 0)
