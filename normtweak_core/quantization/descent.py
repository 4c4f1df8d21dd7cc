"""Go on from the codes of GPTQ: coordinate descent over the scales and codes of each group.

GPTQ rounds each column once, and never comes back to it; its scales were fitted before any column
was rounded. Here each group of columns is taken again with all others as they are now: first its
scale, in closed form, then the codes of one column after the other. No step can raise the error.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from normtweak_core.quantization.grid import GridSpec, round_scale

# Columns that are taken together; changes speed only, never the result.
BLOCK_SIZE = 128


@dataclass(frozen=True)
class Grids:
    """Codes of a matrix and the grid of each of its groups, all as float32."""

    codes: Float[Tensor, "out in"]
    scales: Float[Tensor, "out groups"]
    zeros: Float[Tensor, "out groups"]

    def dequantized(self) -> Float[Tensor, "out in"]:
        """Return the weights that the codes stand for."""
        groups = self.codes.unflatten(1, (self.scales.shape[1], -1))
        return ((groups - self.zeros[..., None]) * self.scales[..., None]).flatten(1)

    def or_better(self, other: "Grids", better: Bool[Tensor, " out"]) -> "Grids":
        """Return the same with the rows of another where that is better."""
        pairs = zip(
            (self.codes, self.scales, self.zeros),
            (other.codes, other.scales, other.zeros),
            strict=True,
        )
        return Grids(*(torch.where(better[:, None], new, old) for old, new in pairs))


def descend(
    W: Float[Tensor, "out in"],
    H: Float[Tensor, "in in"],
    grids: Grids,
    spec: GridSpec,
    sweeps: int,
) -> Grids:
    """Return scales and codes with which ``(Q - W) H (Q - W)^T`` of no row is larger than before.

    Where all rows share one scale, it is their sum that is not larger.

    Args:
        W: Weights that were rounded. Not modified.
        H: Hessian, damped as for GPTQ, so that no column is dead. Not modified.
        grids: Where to start; their zeros stay. Not modified.
        spec: Width and kind of the grid.
        sweeps: How often all groups are taken.

    Source: coordinate descent on codes as in QuantEase (arXiv 2309.01885, Algorithm 1); the scale
        of a group at fixed codes is the least-squares answer, rounded to the type that holds it.
    """
    codes, scales = grids.codes.clone(), grids.scales.clone()
    D = grids.dequantized() - W  # error of each weight
    width, diagonal = W.shape[1] // scales.shape[1], H.diagonal().tolist()
    for _ in range(sweeps):
        for group in range(scales.shape[1]):
            here = slice(group * width, (group + 1) * width)
            R, zero = D @ H[:, here], grids.zeros[:, group]  # half the gradient
            levels = codes[:, here] - zero[:, None]
            scale, change = _refitted(levels, scales[:, group], R, H[here, here], spec)
            scales[:, group] = scale
            D[:, here] += change
            R += change @ H[here, here]
            codes[:, here], D[:, here] = _descended(
                W[:, here], D[:, here], R, H[here, here], diagonal[here], (scale, zero), spec
            )
    return Grids(codes, scales, grids.zeros)


def _refitted(
    levels: Float[Tensor, "out group"],
    scale: Float[Tensor, " out"],
    R: Float[Tensor, "out group"],
    H: Float[Tensor, "group group"],
    spec: GridSpec,
) -> tuple[Float[Tensor, " out"], Float[Tensor, "out group"]]:
    """Return the best scale of a group at these levels, and what it changes of the weights."""
    curvature = spec.together(((levels @ H) * levels).sum(1))
    best = scale - spec.together((R * levels).sum(1)) / curvature
    # Not where all levels are zero, nor where the best scale would turn the group around.
    usable = (curvature > 0) & (best > 0)
    best = torch.where(usable, round_scale(best, spec.scale_dtype), scale)
    return best, (best - scale)[:, None] * levels


def _descended(
    W: Float[Tensor, "out group"],
    D: Float[Tensor, "out group"],
    R: Float[Tensor, "out group"],
    H: Float[Tensor, "group group"],
    diagonal: list[float],
    grid: tuple[Float[Tensor, " out"], Float[Tensor, " out"]],
    spec: GridSpec,
) -> tuple[Float[Tensor, "out group"], Float[Tensor, "out group"]]:
    """Return the codes of a group, each the best one given all others, and the errors they leave.

    ``R`` is overwritten: ``D H`` over all columns of the matrix, as each code finds it.
    """
    codes, D, (scale, zero) = torch.empty_like(W), D.clone(), grid
    for start in range(0, W.shape[1], BLOCK_SIZE):
        here = slice(start, start + BLOCK_SIZE)
        # Turned, so that a column lies together in memory.
        weight, before = W[:, here].T.contiguous(), D[:, here].T.contiguous()
        gradient, error = R[:, here].T.contiguous(), before.clone()
        block = H[here, here]
        taken = torch.empty_like(weight)
        for i in range(len(weight)):
            best = weight[i] + error[i] - gradient[i] / diagonal[start + i]
            taken[i] = spec.codes(best, scale, zero)
            error[i] = scale * (taken[i] - zero) - weight[i]
            gradient[i + 1 :].addr_(block[i, i + 1 :], error[i] - before[i])
        codes[:, here], D[:, here] = taken.T, error.T
        R[:, here.stop :] += (error - before).T @ H[here, here.stop :]
    return codes, D
