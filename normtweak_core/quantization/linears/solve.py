"""Solve the linears of one block, each with the ones before it already quantized.

Both streams pass through the block: at each group of linears that read one tensor their statistics
are gathered, the group is solved, and the quantized stream goes on through the weights it got. Of
several processes each gathers from its micro-batches; the first one solves, and all go on with what
it has found.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.activations.smoothing import Smoothed
from normtweak_core.distributed.ranks import ALONE, Ranks
from normtweak_core.distributed.tree import TreeSum
from normtweak_core.experts.stacked import mixture_of
from normtweak_core.forecast.memory import solving_bytes
from normtweak_core.memory import available_memory
from normtweak_core.model.structure import find_linears, linear_weight, set_linear_weight
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.gptq import SolvedWeight, gptq, round_to_nearest, split_rows
from normtweak_core.quantization.grid import GridSpec
from normtweak_core.quantization.hessian import InputStatistics, corrected_weight
from normtweak_core.quantization.linears.experts import RoutedInputs, expert_statistics
from normtweak_core.quantization.linears.inputs import RunBlock, linear_groups
from normtweak_core.quantization.linears.passes import FloatPasses, QuantizedPasses, Stop
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.report import ExpertReport, LayerReport
from normtweak_core.quantization.streams import Streams, micro_batches, share_of
from normtweak_core.quantization.weight import QuantizedWeight

# Share of the memory that is free, beside what solving takes, for micro-batches that wait.
SUSPENDED_SHARE = 0.4


@dataclass
class SolvedLinears:
    """What became of the linears of a block, by their names in it; the first process knows it."""

    layers: dict[str, QuantizedWeight] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)
    experts: dict[str, ExpertReport] = field(default_factory=dict)
    routed_alike: float | None = None  # see `RoutedInputs`


@dataclass(frozen=True)
class LinearGroup:
    """Float linears that read the same tensor, in the order in which they are called."""

    modules: dict[str, nn.Module]  # by name in the block
    mixture: str | None = None  # name of the mixture of experts of which they are all linears
    divisor: Float[Tensor, " in"] | None = None  # where smoothed: of what the float block reads
    smooths: bool = False  # whether the block is smoothed, so that outputs are others as well

    @property
    def first(self) -> str:
        """Name of the one that is called first."""
        return next(iter(self.modules))

    @property
    def weights(self) -> list[Float[Tensor, "out in"]]:
        """The float weights, in float32."""
        return [linear_weight(module).float() for module in self.modules.values()]

    @property
    def by_outputs(self) -> bool:
        """Whether the float outputs tell the cross statistic with less work than the inputs.

        Only in float32: of rounded outputs, their rounding would be taken for error.
        """
        weight = linear_weight(self.modules[self.first])
        narrow = len(self.modules) == 1 and 2 * weight.shape[0] <= weight.shape[1]
        return narrow and weight.dtype == torch.float32 and not self.smooths

    def statistics(
        self,
        inputs: Iterator[Tensor],
        wanted: Iterator[Tensor] | None,
        leaves: list[int],
        ranks: Ranks = ALONE,
    ) -> tuple[Float[Tensor, "in in"] | None, Float[Tensor, "out in"] | None]:
        """Return H, and W C where the float stream is given; None where another process has them.

        Args:
            inputs: What the quantized stream holds in front of the linears, by micro-batch.
            wanted: Of the float stream the same, or what is behind them where `by_outputs`.
            leaves: Of the tree of sums, which each of these micro-batches is in.
            ranks: Who else gathers.
        """
        weight = linear_weight(self.modules[self.first])
        sums = TreeSum(lambda: InputStatistics(weight.shape[1], weight.device), ranks)
        # Not called as a module: the passes that wait at this linear must not notice.
        layer = self.modules[self.first].forward if self.by_outputs else None
        for leaf, hidden in zip(leaves, inputs, strict=True):
            theirs = None if wanted is None else next(wanted)
            if theirs is not None and self.divisor is not None:
                theirs = theirs / self.divisor
            sums.of(leaf).add_both(hidden, theirs, layer)
        statistics = sums.total(InputStatistics.made_of)
        if statistics is None:
            return None, None
        if wanted is None:
            return statistics.hessian(), None
        cross = statistics.cross()
        return statistics.hessian(), cross if self.by_outputs else torch.cat(self.weights) @ cross


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
    groups = linear_groups_of(block, run, streams.x_f[:1], smooth)
    ranks.meet()  # all have read the first window, and it may be overwritten
    propagated = settings.propagation.alpha > 0
    informed = settings.method == "gptq" or propagated  # the bare RTN needs no data
    ours_at = [Stop(group.mixture or group.first) for group in groups if informed]
    wanted_at = [
        Stop(group.mixture or group.first, group.by_outputs) for group in groups if propagated
    ]
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


def linear_groups_of(
    block: nn.Module, run: RunBlock, hidden: Tensor, smooth: Smoothed | None = None
) -> list[LinearGroup]:
    """Return the groups of a block, or of it smoothed, in the order in which they are called."""
    linears = find_linears(block if smooth is None else smooth.block)
    return [
        LinearGroup(
            {name: linears[name] for name in names},
            mixture_of(block, names[0]),
            None if smooth is None else smooth.divisors.get(names[0]),
            smooth is not None,
        )
        for names in linear_groups(block, run, hidden)
    ]


def _agree_on_weights(group: LinearGroup, quantized: nn.Module, ranks: Ranks) -> None:
    """Give the linears of a group, in every process, the weights that the first one has found."""
    if ranks.size == 1:
        return
    linears = find_linears(quantized)
    for name in group.modules:
        weight = linear_weight(linears[name]).contiguous()
        ranks.agree(weight)
        set_linear_weight(linears[name], weight)


def held_micro_batches(
    groups: list[LinearGroup], streams: Streams, propagated: bool, ranks: Ranks = ALONE
) -> int:
    """Return how many micro-batches may wait in memory, in the share of it that is theirs.

    Processes share the memory of the machine; a GPU is of one alone.

    Args:
        groups: Where they wait.
        streams: Whose windows they are.
        propagated: Whether what is seen at each stop is noted beside.
        ranks: Who shares the memory.
    """
    hidden, before, floats, noted = streams.x_q.shape[2], 0, 0, 0
    sizes: list[tuple[int, int]] = []
    for group in groups:
        weights = [linear_weight(module) for module in group.modules.values()]
        rows, columns = sum(len(weight) for weight in weights), weights[0].shape[1]
        if group.mixture is not None:  # their own intermediates wait for nothing
            rows = columns
        # The residual, the input of the part of the block that is at work, what the linears before
        # gave it, and what these read.
        floats, before = max(floats, 2 * hidden + before + columns), rows
        sizes.append((rows, columns))
        noted += rows if group.by_outputs else columns
    size = micro_batches(streams.x_q)[0].stop * streams.x_q.shape[1]
    needed = size * (floats + propagated * noted) * streams.x_q.element_size()
    device = linear_weight(next(iter(groups[0].modules.values()))).device
    sharing = ranks.size if device.type == "cpu" else 1
    free = available_memory(str(device)) - solving_bytes(sizes)
    return max(0, int(SUSPENDED_SHARE * free // needed // sharing))


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
