"""Quantize one block: GPTQ with error propagation on its linears, then tweak its norms.

Two streams arrive: x_f, what the float model sees here, and x_q, what the quantized model sees.
The linears are taken in the order they run (true-sequential): statistics of a later layer are
collected with the earlier ones already quantized.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.model.structure import find_linears, linear_weight, set_linear_weight
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.drift import Drift, drift
from normtweak_core.quantization.gptq import SolvedWeight, gptq, round_to_nearest, split_rows
from normtweak_core.quantization.grid import GridSpec
from normtweak_core.quantization.hessian import InputStatistics, corrected_weight
from normtweak_core.quantization.inputs import RunBlock, layer_input, linear_groups
from normtweak_core.quantization.report import BlockReport, LayerReport
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.tweak.config import NormTweakConfig
from normtweak_core.tweak.report import TweakReport
from normtweak_core.tweak.tweak import round_norms, tweak_norms, tweak_rate

# Tokens per micro-batch of forward passes: bounds memory, follows from the recipe alone.
TOKENS_PER_MICRO_BATCH = 4096
HELD_OUT_SHARE = 8  # the last eighth of the windows serves neither Hessians nor gradients


@dataclass(frozen=True)
class Streams:
    """Hidden states of all calibration windows at one block boundary."""

    x_f: Float[Tensor, "samples seq hidden"]  # of the float model
    x_q: Float[Tensor, "samples seq hidden"]  # of the quantized model

    @property
    def num_training(self) -> int:
        """Windows before the held-out ones."""
        return num_training_windows(len(self.x_f))


def num_training_windows(samples: int) -> int:
    """Return how many of the first windows serve Hessians and gradients."""
    return samples - max(1, samples // HELD_OUT_SHARE)


def micro_batches(hidden: Tensor) -> list[slice]:
    """Return the slices of windows that go through a block together."""
    size = max(1, TOKENS_PER_MICRO_BATCH // hidden.shape[1])
    return [slice(i, min(i + size, len(hidden))) for i in range(0, len(hidden), size)]


@dataclass(frozen=True)
class BlockPlan:
    """Everything a block's result depends on besides its weights and its input streams."""

    index: int
    num_blocks: int
    quantization: QuantizationConfig
    norm_tweak: NormTweakConfig
    export_dtype: torch.dtype


@dataclass
class QuantizedBlock:
    """A finished block; parameter names are relative to the block."""

    layers: dict[str, QuantizedWeight]
    norms: dict[str, Float[Tensor, " hidden"]]  # float32 masters of tweaked norm parameters
    report: BlockReport
    streams: Streams  # its output
    drift_quantized: Drift  # behind it, after its linears were quantized
    drift_tweaked: Drift  # and after the norm tweak; the same where there was none


@dataclass
class _Solved:
    layers: dict[str, QuantizedWeight] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)


def quantize_block(
    block: nn.Module,
    streams: Streams,
    run: RunBlock,
    plan: BlockPlan,
    note: Callable[[str], None] = lambda event: None,
) -> QuantizedBlock:
    """Return the quantized block and the streams behind it.

    Args:
        block: Float block, in eval mode. Not modified.
        streams: What the float and the quantized model see at its input.
        run: Runs a block on a micro-batch of windows.
        plan: Settings, depth and export dtype.
        note: Called with ``solve``, ``tweak`` and ``finish`` as each part begins.

    Raises:
        HessianError: A Hessian cannot be factorized.
        NonFiniteError: Activations or losses are not finite.
        InputError: The group size does not divide an input width.
    """
    quantized = copy.deepcopy(block)
    note("solve")
    solved = _quantize_linears(block, quantized, streams, run, plan)
    round_norms(quantized, plan.export_dtype)

    x_f = run_stream(block, streams.x_f, run)
    x_q = run_stream(quantized, streams.x_q, run)
    tweaked = quantized_drift = drift(x_q, x_f)
    tweak: TweakReport | None = None
    norms: dict[str, Tensor] = {}
    if plan.norm_tweak.enabled:
        note("tweak")
        target = x_f
        if plan.norm_tweak.target == "local":
            target = run_stream(block, streams.x_q, run)
        tweak, norms = _tweak(quantized, streams, target, run, plan)
        if tweak.accepted:
            x_q = run_stream(quantized, streams.x_q, run)
            tweaked = drift(x_q, x_f)
    note("finish")
    report = BlockReport(
        block=plan.index,
        layers=solved.reports,
        left_float=sorted(set(find_linears(block)) - set(solved.layers)),
        tweak=tweak,
        drift_quantized=quantized_drift.relative_norm,
        drift_tweaked=tweaked.relative_norm,
        mean_shift_quantized=quantized_drift.mean_shift,
        mean_shift_tweaked=tweaked.mean_shift,
    )
    return QuantizedBlock(solved.layers, norms, report, Streams(x_f, x_q), quantized_drift, tweaked)


def _tweak(
    quantized: nn.Module, streams: Streams, target: Tensor, run: RunBlock, plan: BlockPlan
) -> tuple[TweakReport, dict[str, Tensor]]:
    return tweak_norms(
        quantized,
        streams.x_q,
        target,
        streams.num_training,
        run,
        plan.norm_tweak,
        tweak_rate(plan.norm_tweak, plan.index, plan.num_blocks),
        plan.export_dtype,
    )


@torch.no_grad()
def run_stream(block: nn.Module, hidden: Tensor, run: RunBlock) -> Tensor:
    """Return the block's output for all windows, micro-batch by micro-batch."""
    return torch.cat([run(block, hidden[part]).cpu() for part in micro_batches(hidden)])


@torch.no_grad()
def _quantize_linears(
    block: nn.Module, quantized: nn.Module, streams: Streams, run: RunBlock, plan: BlockPlan
) -> _Solved:
    done = _Solved()
    for names in linear_groups(block, run, streams.x_f[:1]):
        modules = [find_linears(block)[name] for name in names]
        weights = [linear_weight(module).float() for module in modules]
        W, H, ridge = torch.cat(weights), None, 0.0
        settings = plan.quantization.propagation
        if plan.quantization.method == "gptq" or settings.alpha > 0:  # the bare RTN needs no data
            H, C = _statistics(block, quantized, names[0], streams, run, W.shape[1])
            correction = corrected_weight(W, H, C, settings.alpha, settings.ridge)
            W, ridge = correction.weight, correction.ridge
        solved = _solve(W, H, plan)
        parts = split_rows(solved.weight, [len(weight) for weight in weights])
        corrected = W.split([len(weight) for weight in weights])
        for name, original, target, part in zip(names, weights, corrected, parts, strict=True):
            set_linear_weight(find_linears(quantized)[name], part.dequantize())
            done.layers[name] = part
            report = _layer_report(name, original, target, part, H, solved, ridge, plan)
            done.reports.append(report)
    return done


def _statistics(
    block: nn.Module, quantized: nn.Module, layer: str, streams: Streams, run: RunBlock, width: int
) -> tuple[Tensor, Tensor]:
    device = linear_weight(find_linears(block)[layer]).device
    statistics = InputStatistics(width, device)
    for part in micro_batches(streams.x_f[: streams.num_training]):
        statistics.add(
            layer_input(quantized, layer, run, streams.x_q[part]),
            layer_input(block, layer, run, streams.x_f[part]),
        )
    return statistics.hessian(), statistics.cross()


def _solve(W: Tensor, H: Tensor | None, plan: BlockPlan) -> SolvedWeight:
    settings = plan.quantization
    spec = GridSpec(
        settings.bits, settings.symmetric, settings.mse_grid, plan.export_dtype, settings.levels
    )
    if settings.method == "rtn":
        return round_to_nearest(W, settings.group_size, spec)
    return gptq(
        W,
        H,
        settings.group_size,
        spec,
        act_order=settings.act_order,
        percdamp=settings.percdamp,
    )


def _layer_report(
    name: str,
    original: Tensor,
    target: Tensor,
    part: QuantizedWeight,
    H: Tensor | None,
    solved: SolvedWeight,
    ridge: float,
    plan: BlockPlan,
) -> LayerReport:
    rounded = part.dequantize()
    return LayerReport(
        layer=name,
        bits=part.bits,
        percdamp=solved.percdamp,
        damping_raised=solved.percdamp > plan.quantization.percdamp,
        ridge=ridge,
        ridge_raised=ridge > plan.quantization.propagation.ridge,
        dead_columns=solved.dead_columns,
        weight_error=((rounded - original).norm() / original.norm().clamp(min=1e-30)).item(),
        output_error=None if H is None else _output_error(rounded - target, target, H),
    )


def _output_error(error: Tensor, target: Tensor, H: Tensor) -> float:
    """Return |error X| / |target X|; 0.0 where nothing comes out of the layer, rounded or not."""
    energy = ((target @ H) * target).sum()
    if energy <= 0:
        return 0.0
    # Rounding leaves H a little less than positive semidefinite: an error near zero may come out
    # below it.
    return (((error @ H) * error).sum().clamp(min=0) / energy).sqrt().item()
