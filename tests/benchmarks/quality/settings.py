"""The settings that are compared, by part; the first of each is what the others are compared to."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor

from normtweak_core.quantization import gptq, grid

DEFAULT_EXPONENTS = gptq.EXPONENTS


@dataclass(frozen=True)
class Setting:
    """Keys of ``quantization``, and how the range of a group is searched."""

    name: str
    keys: dict[str, Any] = field(default_factory=dict)
    exponents: tuple[float, ...] = DEFAULT_EXPONENTS
    weighted: bool = True
    as_published: bool = False  # 80 ranges, of ternary grids 76

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Search so inside."""
        with ExitStack() as changes:
            changes.enter_context(mock.patch.object(gptq, "EXPONENTS", self.exponents))
            if not self.weighted:
                changes.enter_context(mock.patch.object(gptq, "fit_grid", _all_alike))
            if self.as_published:
                ranges = {
                    "COARSE": [1 - 0.01 * step for step in range(80)],
                    "FINE": [],
                    "MEAN_COARSE": [0.5 + 0.02 * step for step in range(76)],
                    "MEAN_FINE": [],
                }
                changes.enter_context(mock.patch.multiple(grid, **ranges))
            yield


def _all_alike(
    weight: Tensor, spec: grid.GridSpec, importance: Tensor, exponent: float
) -> tuple[Tensor, Tensor]:
    return grid.fit_grid(weight, spec, None, exponent)


@dataclass(frozen=True)
class Part:
    """Settings that are compared with each other, and the widths of each kind of grid."""

    settings: list[Setting]
    kinds: dict[str, tuple[int, ...]]
    group_sizes: tuple[int, ...]  # of models whose widths they divide; else one scale a row


PUBLISHED = Setting(
    "published search", {"sweeps": 0}, (grid.ERROR_NORM,), weighted=False, as_published=True
)


def _name(exponents: tuple[float, ...]) -> str:
    return f"exponent{'s' * (len(exponents) > 1)} {', '.join(f'{e:g}' for e in exponents)}"


PARTS = {
    "range of a group, without sweeps": Part(
        [
            PUBLISHED,
            Setting("min-max", {"sweeps": 0, "mse_grid": False}),
            Setting("exponent 2.4, unweighted", {"sweeps": 0}, (2.4,), weighted=False),
            *(Setting(_name((e,)), {"sweeps": 0}, (e,)) for e in (2.0, 3.0, 4.0, 6.0)),
            *(Setting(_name(e), {"sweeps": 0}, e) for e in ((2.0, 4.0), (2.0, 3.0, 4.0, 6.0))),
        ],
        {"asymmetric": (2,)},
        (64,),
    ),
    "sweeps": Part(
        [
            PUBLISHED,
            *(Setting(f"{sweeps} sweeps", {"sweeps": sweeps}) for sweeps in (0, 1, 2, 4, 8)),
            Setting("min-max, 4 sweeps", {"sweeps": 4, "mse_grid": False}),
            Setting("exponent 3, 4 sweeps", {"sweeps": 4}, (3.0,)),
            Setting("exponents 2, 4, 4 sweeps", {"sweeps": 4}, (2.0, 4.0)),
            Setting("unweighted, 4 sweeps", {"sweeps": 4}, weighted=False),
        ],
        {"asymmetric": (2,)},
        (32, 64, 128),
    ),
    "kinds of grids": Part(
        [
            PUBLISHED,
            Setting("exponents alone", {"sweeps": 0}),
            Setting("and 4 sweeps", {"sweeps": 4}),
        ],
        {"asymmetric": (2, 3, 4), "symmetric": (3, 4), "ternary": (2,)},
        (32, 128),
    ),
}
