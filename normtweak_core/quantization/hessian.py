"""Statistics of a layer's inputs, and the factorizations that quantization needs of them.

H is the Hessian of the layer's output error, ``2/N sum x x^T`` over the N calibration tokens of
the quantized stream. C is the cross statistic ``2/N sum (x_float - x) x^T`` of the accumulated
input error (method of arXiv 2504.09629).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from normtweak_core.errors import HessianError, NonFiniteError

DAMPING_GROWTH = 10.0
MAX_DAMPING = 1.0
# H was summed in float32: a pivot below this share of its diagonal entry is rounding. Cholesky in
# float64 accepts it half the time, as its sign falls, and the answer is noise divided by noise.
RESOLUTION = 1e-6
# Columns of H that are summed together: of a symmetric matrix, half is not computed.
COLUMNS = 256
ROWS = 1024  # of a weight, that are in float64 together


class InputStatistics:
    """Accumulates H, and the cross statistic where the float stream is given, over tokens."""

    def __init__(self, width: int, device: torch.device):
        """Start empty for a layer with ``width`` input columns."""
        self.num_tokens = 0
        self._outer = torch.zeros(width, width, device=device)  # its upper triangle, by blocks
        self._cross: Tensor | None = None  # of the inputs: C; of the outputs: W C

    def add(self, inputs: Float[Tensor, "*tokens width"]) -> Float[Tensor, "tokens width"]:
        """Add the tokens of one micro-batch, in float32 whatever their dtype; return them so."""
        x = inputs.flatten(0, -2).float()
        for start in range(0, x.shape[1], COLUMNS):
            rows = slice(start, start + COLUMNS)
            self._outer[rows, start:].addmm_(x[:, rows].T, x[:, start:])
        self.num_tokens += x.shape[0]
        return x

    def add_error(
        self, error: Float[Tensor, "*tokens error"], x: Float[Tensor, "tokens width"]
    ) -> None:
        """Add to the cross statistic, ``sum error x^T``.

        Args:
            error: Float inputs less ``x``, for C; or the float layer's outputs less those it has
                for ``x``, for W C.
            x: The inputs as `add` returned them.
        """
        error = error.flatten(0, -2)
        if self._cross is None:
            self._cross = error.new_zeros(error.shape[1], x.shape[1])
        self._cross.addmm_(error.T, x)

    def add_both(
        self, inputs: Float[Tensor, "*tokens width"], wanted: Float[Tensor, "*tokens width"] | None
    ) -> None:
        """Add what both streams hold of one micro-batch.

        Args:
            inputs: Of the quantized stream.
            wanted: Of the float stream; None: there is none.
        """
        x = self.add(inputs)
        if wanted is not None:
            self.add_error(wanted.flatten(0, -2).float() - x, x)

    def merge(self, other: "InputStatistics") -> None:
        """Add the statistics of other tokens, in place."""
        self.num_tokens += other.num_tokens
        self._outer += other._outer
        if self._cross is not None:
            self._cross += other._cross

    def tensors(self) -> list[Tensor]:
        """Return all that these statistics consist of."""
        cross = [] if self._cross is None else [self._cross]
        return [torch.tensor(self.num_tokens), self._outer, *cross]

    @classmethod
    def made_of(cls, tensors: list[Tensor]) -> "InputStatistics":
        """Return the statistics that have given these tensors, which become its own."""
        num_tokens, outer, *cross = tensors
        found = cls(0, outer.device)
        found.num_tokens, found._outer = int(num_tokens), outer
        found._cross = cross[0] if cross else None
        return found

    def hessian(self) -> Float[Tensor, "width width"]:
        """Return H, to be asked for once: the sums themselves become it.

        Raises:
            NonFiniteError: An input was NaN or infinite.
        """
        H = self._outer.triu_().mul_(2 / self.num_tokens)
        del self._outer
        if not torch.isfinite(H.diagonal()).all():
            raise NonFiniteError(
                "inputs of a layer must be finite; found NaN or infinity in the calibration "
                "activations: check the float model's weights and dtype"
            )
        for start in range(0, len(H), COLUMNS):
            rows, right = slice(start, start + COLUMNS), slice(start + COLUMNS, None)
            H[rows, rows] += H[rows, rows].triu(1).T
            H[right, rows] = H[rows, right].T
        return H

    def cross(self) -> Float[Tensor, "error width"]:
        """Return C, or W C."""
        return self._cross * (2 / self.num_tokens)


@dataclass(frozen=True)
class Factor:
    """Upper Cholesky factor of the damped inverse Hessian, and the damping it took."""

    U: Float[Tensor, "width width"]  # H^-1 = U^T U
    percdamp: float


@dataclass(frozen=True)
class Correction:
    """A weight that undoes the error of its input, and the ridge that its least squares took."""

    weight: Float[Tensor, "out width"]
    ridge: float  # 0.0 where nothing was corrected


def without_dead_columns(
    H: Float[Tensor, "width width"],
) -> tuple[Float[Tensor, "width width"], Bool[Tensor, " width"]]:
    """Return H with ones for the zeros on its diagonal, and which columns those are.

    Such an input is zero at every token: H says nothing of its column and, with the zero, could
    not be factorized. Where there is none, H itself is returned.
    """
    dead = H.diagonal() == 0
    return with_diagonal(H, dead.to(H.dtype)) if dead.any() else H, dead


def with_diagonal(
    H: Float[Tensor, "width width"], added: Float[Tensor, "*#width"]
) -> Float[Tensor, "width width"]:
    """Return H with something added to its diagonal."""
    changed = H.clone()
    changed.diagonal().add_(added)
    return changed


def inverse_cholesky(
    H: Float[Tensor, "width width"], percdamp: float, order: Int64[Tensor, " width"] | None = None
) -> Factor:
    """Return U with ``(H + damping I)^-1 = U^T U``; damping is raised only if that fails.

    Args:
        H: Hessian without zero diagonal entries, float32. Not modified.
        percdamp: Damping as a fraction of the mean diagonal.
        order: Of the columns of the H that is factorized; None: as they are.

    Raises:
        HessianError: Not positive definite even with damping equal to the mean diagonal.

    Source: Frantar et al. 2022, Algorithm 1; factorized in float64, where theirs is float32.
    """

    def inverted(lower: Tensor) -> Tensor:
        _invert_triangle(lower)
        return lower.float().flip(0, 1)

    # From its last column to its first, H = R R^T with R upper, and U = R^-1.
    order = torch.arange(len(H), device=H.device) if order is None else order
    # Every other number of a matrix: torch adds what lies apart in another order than what lies
    # together, and the result shall be that of the diagonal of a matrix in this order.
    apart = H.new_empty(len(H), 2)
    apart[:, 0] = H.diagonal()[order]
    mean = apart[:, 0].mean()
    return Factor(*_solved(H, mean, "percdamp", percdamp, inverted, order.flip(0)))


def _invert_triangle(lower: Float[Tensor, "width width"]) -> None:
    """Invert a lower triangular matrix in place, by halves: a third of the work of a solve."""
    width = len(lower)
    if width <= COLUMNS:
        eye = torch.eye(width, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        return
    half = width // 2
    first, second, corner = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert_triangle(first)
    _invert_triangle(second)
    corner.copy_(-(second @ corner @ first))


def corrected_weight(
    W: Float[Tensor, "out width"],
    H: Float[Tensor, "width width"],
    WC: Float[Tensor, "out width"],
    alpha: float,
    ridge: float,
) -> Correction:
    """Return W changed so that it undoes, as far as it can, the error its input has accumulated.

    ``W + alpha W C (H + ridge mean(diag H) I)^-1``: with alpha 1 and no ridge the least-squares
    answer to ``min |W' X - W X_float|``, after which ordinary GPTQ is exact for that objective.
    The ridge is raised only if H cannot be factorized with the one given.

    Args:
        W: Weights of all layers that read this input, stacked by rows. Columns that are dead in
            the quantized stream must still be there: what they did to the float output is handed
            to the live ones. They are not changed themselves.
        H: Hessian of the quantized stream.
        WC: W times the cross statistic of the same tokens.
        alpha: Share of the correction, 0 to 1.
        ridge: Regularization, as a fraction of the mean diagonal of H.

    Raises:
        HessianError: Not positive definite even with a ridge of the mean diagonal.

    Source: QEP, arXiv 2504.09629; the identity is derived in Qronos (arXiv 2505.11695) and ours.
    """
    if alpha == 0:
        return Correction(W.clone(), 0.0)

    def least_squares(lower: Tensor) -> Tensor:
        return torch.cholesky_solve(WC.double().T, lower).T

    mean_diagonal = H.diagonal().mean()
    H, dead = without_dead_columns(H)
    change, ridge = _solved(H, mean_diagonal, "ridge", ridge, least_squares)
    # C is zero there too, unless the squares of the inputs, but not the inputs, fell below float32.
    change.masked_fill_(dead, 0.0).mul_(alpha)
    weight = torch.empty_like(W)
    for start in range(0, len(W), ROWS):
        rows = slice(start, start + ROWS)
        weight[rows] = W[rows].double() + change[rows]
    return Correction(weight, ridge)


def _solved(
    H: Float[Tensor, "width width"],
    mean_diagonal: Float[Tensor, ""],
    setting: str,
    damping: float,
    solve: Callable[[Tensor], Tensor],
    order: Int64[Tensor, " width"] | None = None,
) -> tuple[Tensor, float]:
    """Return what ``solve`` makes of the lower Cholesky factor of H, and the damping it took.

    Args:
        H: Without zero diagonal entries, float32. Not modified.
        mean_diagonal: What the damping is a fraction of.
        setting: Name of the damping in the recipe.
        damping: The least there is to be; raised step by step where H cannot be factorized.
        solve: Makes the solution of the factor, which it may overwrite.
        order: Of the columns; None: as they are.
    """
    while True:
        # Turned, which changes nothing of a symmetric matrix but lets it be factorized in place.
        lower = (H if order is None else H[order[:, None], order]).double().T
        lower.diagonal().add_(damping * mean_diagonal.double())
        diagonal = lower.diagonal().clone()
        failed = torch.empty((), dtype=torch.int32, device=H.device)
        torch.linalg.cholesky_ex(lower, out=(lower, failed))
        pivots = lower.diagonal().square()
        if not failed and (pivots > RESOLUTION * diagonal).all():
            return solve(lower), damping
        if damping >= MAX_DAMPING:
            raise HessianError(
                f"the Hessian must be positive definite; it is not, even with {setting}={damping}: "
                "use more or more varied calibration text"
            )
        damping = min(MAX_DAMPING, max(damping, 1e-4) * DAMPING_GROWTH)
