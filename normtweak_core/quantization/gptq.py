"""GPTQ: round a weight matrix column by column, pushing each error onto the columns after it.

Source: Frantar et al. 2022, Algorithm 1, https://arxiv.org/abs/2210.17323.
Symbols follow the paper: W weight, H Hessian, U upper Cholesky factor of H^-1, E scaled error.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from normtweak_core.errors import InputError
from normtweak_core.quantization.descent import Grids, descend
from normtweak_core.quantization.grid import CHUNK, ERROR_NORM, GridSpec, fit_grid
from normtweak_core.quantization.hessian import (
    inverse_cholesky,
    with_diagonal,
    without_dead_columns,
)
from normtweak_core.quantization.weight import QuantizedWeight

# Columns updated together; changes speed only, never the result.
BLOCK_SIZE = 128


@dataclass(frozen=True)
class SolvedWeight:
    """A quantized matrix and what the solver has to report about it."""

    weight: QuantizedWeight
    percdamp: float  # damping that was needed; 0.0 for round to nearest
    dead_columns: int


@dataclass(frozen=True)
class ColumnPlan:
    """The order in which columns are taken and the group each belongs to."""

    order: torch.Tensor  # (in,) original column at each position
    group_size: int
    act_order: bool


def round_to_nearest(
    W: Float[Tensor, "out in"], group_size: int | None, spec: GridSpec
) -> SolvedWeight:
    """Return every weight on the nearest level of its group's grid: the baseline (RTN)."""
    width = checked_group_size(W.shape[1], group_size)
    scales, zeros = fit_all_groups(W, width, spec)
    codes = spec.codes(W, scales.repeat_interleave(width, 1), zeros.repeat_interleave(width, 1))
    return SolvedWeight(_packaged(codes, scales, zeros, group_size, spec), 0.0, 0)


def gptq(
    W: Float[Tensor, "out in"],
    H: Float[Tensor, "in in"],
    group_size: int | None,
    spec: GridSpec,
    *,
    act_order: bool,
    percdamp: float,
    exponents: Sequence[float] = (ERROR_NORM,),
    sweeps: int = 0,
) -> SolvedWeight:
    """Return codes for which the layer's output, rather than its weight, stays close.

    Which share of a range to clip depends on how far GPTQ can make up for rounding, and that on
    the layer. So each of ``exponents`` is tried, and each row keeps what leaves its output closest.

    Args:
        W: Weight; rows of several layers may be stacked when they read the same input. Not
            modified.
        H: Hessian, ``2 * mean of x x^T`` over tokens. Not modified.
        group_size: Columns per scale; None: the whole row.
        spec: Width and kind of the grid.
        act_order: Take columns by decreasing diag(H). Groups keep their original columns and are
            fitted before the loop (``static``); otherwise each group is fitted when the loop
            reaches it, on weights that carry all errors so far.
        percdamp: Damping of H, a fraction of its mean diagonal.
        exponents: Of the errors by which ranges are searched, where the grid is. The larger, the
            less is clipped: what rounding does GPTQ can make up for where inputs are correlated,
            what clipping does it cannot.
        sweeps: Of coordinate descent over scales and codes afterwards, see `descend`.

    Raises:
        InputError: The group size does not divide the input width.
        HessianError: H cannot be factorized at any damping up to its mean diagonal.

    Source: differs from the published code in fitting a group on fully compensated weights
        (theirs lacks the updates made inside the current column block), and in the error that a
        range is searched by (theirs: unweighted, exponent 2.4).
    """
    width = checked_group_size(W.shape[1], group_size)
    H, dead = without_dead_columns(H)
    W = W.masked_fill(dead, 0.0)  # only now: the correction of W read these columns
    order = torch.argsort(H.diagonal(), descending=True, stable=True)
    plan = ColumnPlan(order if act_order else torch.arange(len(order)), width, act_order)
    factor = inverse_cholesky(H, percdamp, plan.order)
    H = with_diagonal(H, factor.percdamp * H.diagonal().mean())
    importance = H.diagonal() / H.diagonal().mean()
    best, least = None, None
    for exponent in exponents if spec.mse_grid else exponents[:1]:
        found, error = _column_loop(W, factor.U, plan, spec, importance, exponent)
        error = spec.together(error)
        best = found if best is None else best.or_better(found, error < least)
        least = error if least is None else torch.minimum(error, least)
    best = descend(W, H, best, spec, sweeps)
    packaged = _packaged(best.codes, best.scales, best.zeros, group_size, spec)
    return SolvedWeight(packaged, factor.percdamp, int(dead.sum()))


def _column_loop(
    weight: Float[Tensor, "out in"],
    U: Float[Tensor, "in in"],
    plan: ColumnPlan,
    spec: GridSpec,
    importance: Float[Tensor, " in"],
    exponent: float,
) -> tuple[Grids, Float[Tensor, " out"]]:
    """Return codes and grids, and ``(Q - W) H (Q - W)^T`` of each row."""
    num_columns, group_size = weight.shape[1], plan.group_size
    if plan.act_order:
        scales, zeros = fit_all_groups(weight, group_size, spec, importance, exponent)
    else:
        scales = weight.new_zeros(weight.shape[0], num_columns // group_size)
        zeros = torch.zeros_like(scales)
    W = weight[:, plan.order].contiguous()  # (out, in), overwritten left to right
    codes, error = torch.empty_like(W), W.new_zeros(len(W))
    groups = (plan.order // group_size).tolist()
    diagonal = U.diagonal().tolist()

    for start in range(0, num_columns, BLOCK_SIZE):
        end = min(start + BLOCK_SIZE, num_columns)
        # The block is turned, so that a column of W lies together in memory.
        block = W[:, start:end].T.contiguous()  # (columns, out)
        taken, E = torch.empty_like(block), torch.empty_like(block)
        for i, j in enumerate(range(start, end)):
            group = groups[j]
            if not plan.act_order and j % group_size == 0:
                current = block[i : i + group_size].T
                if j + group_size > end:  # the lazy update has not reached these columns yet
                    late = slice(end, j + group_size)
                    update = E[:i].T.contiguous() @ U[start:j, late]
                    current = torch.cat([current, W[:, late] - update], dim=1)
                scales[:, group], zeros[:, group] = fit_grid(
                    current.contiguous(), spec, importance[j : j + group_size], exponent
                )
            scale, zero = scales[:, group], zeros[:, group]
            taken[i] = spec.codes(block[i], scale, zero)
            E[i] = (block[i] - scale * (taken[i] - zero)) / diagonal[j]
            block[i + 1 :].addr_(U[j, j + 1 : end], E[i], alpha=-1)
        codes[:, plan.order[start:end]] = taken.T
        error += E.square().sum(0)
        # Columns right of the block receive the whole block's error in one matmul.
        W[:, end:].addmm_(E.T.contiguous(), U[start:end, end:], alpha=-1)
    return Grids(codes, scales, zeros), error


def fit_all_groups(
    W: Float[Tensor, "out in"],
    width: int,
    spec: GridSpec,
    importance: Float[Tensor, " in"] | None = None,
    exponent: float = ERROR_NORM,
) -> tuple[Float[Tensor, "out groups"], Float[Tensor, "out groups"]]:
    """Return scales and zeros of every group of ``width`` columns, fitted on W as it is."""
    groups = W.unflatten(1, (-1, width))
    if importance is not None:
        importance = importance.unflatten(0, (-1, width))
    rows = len(W) if spec.one_scale else max(1, CHUNK // W.shape[1])
    parts = [fit_grid(part, spec, importance, exponent) for part in groups.split(rows)]
    return torch.cat([scale for scale, _ in parts]), torch.cat([zero for _, zero in parts])


def checked_group_size(width: int, group_size: int | None) -> int:
    """Return the columns per group.

    Raises:
        InputError: The group size does not divide the input width.
    """
    if group_size is not None and width % group_size:
        raise InputError(
            f"quantization.group_size must divide every input width; {group_size} does not divide "
            f"{width}: choose a divisor, or null for one scale per row"
        )
    return group_size or width


def _packaged(
    codes: Tensor, scales: Tensor, zeros: Tensor, group_size: int | None, spec: GridSpec
) -> QuantizedWeight:
    return QuantizedWeight(
        codes.to(torch.uint8),
        scales.contiguous(),
        zeros.to(torch.uint8),
        spec.bits,
        group_size,
        spec.symmetric,
    )


def split_rows(solved: QuantizedWeight, rows: list[int]) -> list[QuantizedWeight]:
    """Return the matrices that were stacked by rows to be solved together."""
    parts = zip(
        solved.codes.split(rows), solved.scales.split(rows), solved.zeros.split(rows), strict=True
    )
    return [
        replace(
            solved, codes=codes.contiguous(), scales=scales.contiguous(), zeros=zeros.contiguous()
        )
        for codes, scales, zeros in parts
    ]
