"""The settings that are compared, by part; the first of each is what the others are compared to."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from torch import Tensor

from normtweak_core.effort import EFFORTS
from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.library.settings import Settings
from normtweak_core.quantization import gptq, grid
from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig


@dataclass(frozen=True)
class Setting:
    """Keys of ``quantization``, and what no key says of how ranges are searched."""

    name: str
    keys: dict[str, Any] = field(default_factory=dict)
    weighted: bool = True
    effort: str | None = None  # what follows the solve is that of it, but for
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)  # these keys
    as_published: bool = False  # 80 ranges, of ternary grids 76

    def afterwards(self) -> tuple[NormTweakConfig, BlockTrainingConfig, FinalTuneConfig]:
        """Return what follows the solve: nothing, where no effort is named."""
        off = {name: {"enabled": False} for name in ("norm_tweak", "block_training", "final_tune")}
        if self.effort is None:
            settings = Settings.model_validate(off | self.sections)
        else:
            settings = Settings.model_validate({"effort": self.effort} | self.sections)
        return settings.norm_tweak, settings.block_training, settings.final_tune

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Search so inside."""
        with ExitStack() as changes:
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
    "published search",
    {"sweeps": 0, "exponents": [grid.ERROR_NORM]},
    weighted=False,
    as_published=True,
)


def _searched(exponents: list[float]) -> Setting:
    name = f"exponent{'s' * (len(exponents) > 1)} {', '.join(f'{e:g}' for e in exponents)}"
    return Setting(name, {"sweeps": 0, "exponents": exponents})


def _corrected(residual: float) -> Setting:
    return Setting(f"residual {residual:g}", {"propagation": {"residual": residual}})


def _tuned(name: str, **keys: Any) -> Setting:
    return Setting(name, sections={"final_tune": {"enabled": True} | keys})


def _trained(name: str, **keys: Any) -> Setting:
    return Setting(name, sections={"block_training": {"enabled": True} | keys})


def _effort(name: str) -> Setting:
    prefix = "quantization."
    keys = {k.removeprefix(prefix): v for k, v in EFFORTS[name].items() if k.startswith(prefix)}
    return Setting(name, keys, effort=name)


def _best(name: str, steps: int, final: int, **keys: Any) -> Setting:
    sections = {"block_training": {"steps": steps} | keys, "final_tune": {"steps": final}}
    return Setting(name, effort="best", sections=sections)


PARTS = {
    "steps of best": Part(
        [
            _best("200 steps a block, 600 at the end", 200, 600),
            _best("150, 400", 150, 400),
            _best("100, 400", 100, 400),
            _best("100, 400, latent weights 0.01", 100, 400, lr=1e-2),
            _best("100, 800", 100, 800),
        ],
        {"asymmetric": (2,)},
        (64,),
    ),
    "final tune": Part(
        [
            Setting("none"),
            _tuned("norms", scales=False),
            *(_tuned(f"norms and scales, {rate:g}", scale_lr=rate) for rate in (1e-3, 3e-3, 1e-2)),
        ],
        {"asymmetric": (2, 4)},
        (64,),
    ),
    "block training": Part(
        [
            Setting("none"),
            *(_trained(f"latent weights {rate:g}", lr=rate) for rate in (2.5e-3, 5e-3, 1e-2)),
            _trained("latent weights 0.005, scales 0.003", scale_lr=3e-3),
        ],
        {"asymmetric": (2,)},
        (64,),
    ),
    "efforts": Part(
        [_effort(name) for name in ("fast", "standard", "best")],
        {"asymmetric": (2, 3, 4)},
        (64,),
    ),
    "range of a group, without sweeps": Part(
        [
            PUBLISHED,
            Setting("min-max", {"sweeps": 0, "mse_grid": False}),
            Setting("exponent 2.4, unweighted", {"sweeps": 0, "exponents": [2.4]}, weighted=False),
            *(_searched([e]) for e in (2.0, 3.0, 4.0, 6.0)),
            *(_searched(e) for e in ([2.0, 4.0], [2.0, 3.0, 4.0, 6.0])),
        ],
        {"asymmetric": (2,)},
        (64,),
    ),
    "sweeps": Part(
        [
            PUBLISHED,
            *(Setting(f"{sweeps} sweeps", {"sweeps": sweeps}) for sweeps in (0, 1, 2, 4, 8)),
            Setting("min-max, 4 sweeps", {"sweeps": 4, "mse_grid": False}),
            Setting("exponent 3, 4 sweeps", {"sweeps": 4, "exponents": [3.0]}),
            Setting("exponents 2, 4, 4 sweeps", {"sweeps": 4, "exponents": [2.0, 4.0]}),
            Setting("unweighted, 4 sweeps", {"sweeps": 4}, weighted=False),
        ],
        {"asymmetric": (2,)},
        (32, 64, 128),
    ),
    "error of the stream": Part(
        [_corrected(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        {"asymmetric": (2, 4)},
        (64,),
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
