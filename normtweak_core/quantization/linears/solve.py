"""Solve the linears of one block, each with the ones before it already quantized.

Both streams pass through the block: at each group of linears that read one tensor their statistics
are gathered, the group is solved, and the quantized stream goes on through the weights it got. Of
several processes each gathers from its micro-batches; the first one solves, and all go on with what
it has found.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.activations.smoothing import Smoothed
from normtweak_core.distributed.ranks import ALONE, Ranks
from normtweak_core.model.structure import find_linears, linear_weight, set_linear_weight
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.gptq import SolvedWeight, gptq, round_to_nearest, split_rows
from normtweak_core.quantization.grid import GridSpec
from normtweak_core.quantization.hessian import corrected_weight
from normtweak_core.quantization.linears.experts import RoutedInputs, expert_statistics
from normtweak_core.quantization.linears.groups import (
    LinearGroup,
    held_micro_batches,
    linear_groups_of,
)
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.linears.passes import FloatPasses, QuantizedPasses
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.report import ExpertReport, LayerReport
from normtweak_core.quantization.streams import Streams, share_of
from normtweak_core.quantization.weight import QuantizedWeight


@dataclass
class SolvedLinears:
    """What became of the linears of a block, by their names in it; the first process knows it."""

    layers: dict[str, QuantizedWeight] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)
    experts: dict[str, ExpertReport] = field(default_factory=dict)
    routed_alike: float | None = None  # see `RoutedInputs`


@torch.no_grad()
def quantize_linears(
    block: nn.Module,
    quantized: nn.Module,
    streams: Streams,
    run: RunBlock,
    plan: BlockPlan,
    ranks: Ranks = ALONE,
    smooth: Smoothed | None = None,
) -> SolvedLinears:
    """Return the quantized linears, and take the streams behind the block with them in it.

    Args:
        block: Float block. Not modified.
        quantized: A copy of it, smoothed where that is so, whose linears get the quantized weights.
        streams: In front of the block, two tensors; overwritten.
        run: Runs a block on a micro-batch of windows.
        plan: Settings and export dtype.
        ranks: Who does it.
        smooth: The float block smoothed; the float stream passes through the other one, so that it
            stays what it is.

    Raises:
        HessianError: A Hessian cannot be factorized.
        NonFiniteError: Activations are not finite.
        InputError: The group size does not divide an input width.
    """
    done, settings = SolvedLinears(), plan.quantization
    propagation = settings.propagation
    groups = linear_groups_of(block, run, streams.x_f[:1], smooth, propagation)
    ranks.meet()  # all have read the first window, and it may be overwritten
    propagated = propagation.alpha > 0
    informed = settings.method == "gptq" or propagated  # the bare RTN needs no data
    ours_at = [group.stop for group in groups if informed]
    wanted_at = [group.wanted_stop for group in groups if propagated]
    # The first one knows what the limits of the run leave.
    held = ranks.number(held_micro_batches(groups, streams, propagated, ranks))
    share = share_of(streams.x_q, ranks)
    with (
        FloatPasses(block, run, streams.x_f, share, wanted_at, held) as wanted_of,
        QuantizedPasses(quantized, run, streams.x_q, share, ours_at, held) as ours,
    ):
        for index, group in enumerate(groups):
            wanted = wanted_of.at(index) if propagated else None
            if group.mixture is not None:
                inputs = RoutedInputs.of(ours.at(index), wanted, ranks) if informed else None
                if ranks.is_first:
                    _solve_mixture(group, inputs, block, quantized, plan, done)
            else:
                H = WC = None
                if informed:
                    leaves = share.leaves
                    H, WC = group.statistics(ours.at(index), wanted, leaves, ranks)
                if ranks.is_first:
                    _solve_group(group, H, WC, quantized, plan, done)
            _agree_on_weights(group, quantized, ranks)
        wanted_of.finish()
        ours.finish()
    ranks.meet()
    return done


def _agree_on_weights(group: LinearGroup, quantized: nn.Module, ranks: Ranks) -> None:
    """Give the linears of a group, in every process, the weights that the first one has found."""
    if ranks.size == 1:
        return
    linears = find_linears(quantized)
    for name in group.modules:
        weight = linear_weight(linears[name]).contiguous()
        ranks.agree(weight)
        set_linear_weight(linears[name], weight)


def _solve_mixture(
    group: LinearGroup,
    inputs: RoutedInputs | None,
    block: nn.Module,
    quantized: nn.Module,
    plan: BlockPlan,
    done: SolvedLinears,
) -> None:
    """Solve a mixture of experts, one after the other; without inputs they need no statistics."""
    if inputs is None:
        for name, module in group.modules.items():
            _solve_group(LinearGroup({name: module}), None, None, quantized, plan, done)
        return
    done.routed_alike = inputs.alike
    experts = (part.get_submodule(group.mixture) for part in (block, quantized))
    rule = plan.quantization.experts
    for names, statistics, report in expert_statistics(*experts, group.mixture, inputs, rule):
        done.experts[report.expert] = report
        solved, H, WC = LinearGroup({name: group.modules[name] for name in names}), None, None
        if statistics is not None:
            H = statistics.hessian()
            WC = None if inputs.x_f is None else torch.cat(solved.weights) @ statistics.cross()
        _solve_group(solved, H, WC, quantized, plan, done)


def _solve_group(
    group: LinearGroup,
    H: Tensor | None,
    WC: Tensor | None,
    quantized: nn.Module,
    plan: BlockPlan,
    done: SolvedLinears,
) -> None:
    weights, ridge = group.weights, 0.0
    W, rows = torch.cat(weights), [len(weight) for weight in weights]
    if WC is not None:
        settings = plan.quantization.propagation
        correction = corrected_weight(W, H, WC, settings.alpha, settings.ridge)
        W, ridge = correction.weight, correction.ridge
    solved = solved_weight(W, H, plan.settings_of(group.first), plan.export_dtype)
    rounded = replace(solved.weight, activation_bits=plan.quantization.activation_bits)
    parts = split_rows(rounded, rows)
    targets = find_linears(quantized)
    for name, original, corrected, part in zip(
        group.modules, weights, W.split(rows), parts, strict=True
    ):
        set_linear_weight(targets[name], part.dequantize())
        done.layers[name] = part
        report = _layer_report(name, original, corrected, part, H, solved, ridge, plan)
        done.reports.append(report)


def solved_weight(
    W: Float[Tensor, "out in"],
    H: Float[Tensor, "in in"] | None,
    settings: QuantizationConfig,
    export_dtype: torch.dtype,
) -> SolvedWeight:
    """Return a weight on its grid, as the settings say; without a Hessian rounded to nearest.

    Raises:
        HessianError: The Hessian cannot be factorized.
        InputError: The group size does not divide the input width.
    """
    spec = GridSpec(
        settings.bits, settings.symmetric, settings.mse_grid, export_dtype, settings.levels
    )
    if settings.method == "rtn" or H is None:
        return round_to_nearest(W, settings.group_size, spec)
    return gptq(
        W,
        H,
        settings.group_size,
        spec,
        act_order=settings.act_order,
        percdamp=settings.percdamp,
        exponents=settings.exponents,
        sweeps=settings.sweeps,
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
