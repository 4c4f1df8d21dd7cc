"""Quantize one block: GPTQ with error propagation on its linears, tweak its norms, train it.

Two streams arrive: x_f, what the float model sees here, and x_q, what the quantized model sees.
The linears are taken in the order they run (true-sequential): statistics of a later layer are
collected with the earlier ones already quantized.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import no_type_check

from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.activations.rounding import round_inputs
from normtweak_core.activations.smoothing import Smoothed, smoothed
from normtweak_core.distributed.ranks import ALONE, Ranks
from normtweak_core.finetune.block import train_on_grids
from normtweak_core.finetune.model import grid_linears, put_on_grids
from normtweak_core.finetune.report import BlockTraining
from normtweak_core.model.structure import find_linears
from normtweak_core.quantization.drift import Drift, drift
from normtweak_core.quantization.linears.given import GivenBlock, take_linears
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.linears.solve import quantize_linears
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.report import BlockReport
from normtweak_core.quantization.storage import quantized_copy
from normtweak_core.quantization.streams import (
    Streams,
    num_training_windows,
    run_stream,
    share_of,
)
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.tweak.report import TweakReport
from normtweak_core.tweak.tweak import (
    norm_parameters,
    round_norms,
    tweak_norms,
    tweak_rate,
)


@dataclass
class QuantizedBlock:
    """A finished block; parameter names are relative to the block."""

    layers: dict[str, QuantizedWeight]
    # Float32 masters of tweaked norm parameters, and of gains and biases that smoothing changed.
    norms: dict[str, Float[Tensor, " hidden"]]
    report: BlockReport
    streams: Streams  # its output
    drift_quantized: Drift  # behind it, after its linears were quantized
    drift_tweaked: Drift  # and after the norm tweak; the same where there was none
    drift_trained: Drift  # and after its training; the same where there was none


def quantize_block(
    block: nn.Module,
    streams: Streams,
    run: RunBlock,
    plan: BlockPlan,
    note: Callable[[str], None] = lambda event: None,
    ranks: Ranks = ALONE,
    given: GivenBlock | None = None,
) -> QuantizedBlock:
    """Return the quantized block and the streams behind it.

    The bytes are the same whatever the number of processes.

    Args:
        block: Float block, in eval mode. Not modified.
        streams: What the float and the quantized model see at its input. Overwritten: they are
            the largest tensors there are, and those behind the block take their place.
        run: Runs a block on a micro-batch of windows.
        plan: Settings, depth and export dtype.
        note: Called with ``solve``, ``tweak``, ``train`` and ``finish`` as each part begins.
        ranks: Who does it; others than this first process call `help_with`.
        given: The block as others have quantized it, whose codes stay; None: GPTQ makes them.

    Raises:
        HessianError: A Hessian cannot be factorized.
        NonFiniteError: Activations or losses are not finite.
        InputError: The group size does not divide an input width.
    """
    done = _quantized(block, streams, run, plan, note, ranks, given)
    if done is None:
        raise ValueError("only the first process has the finished block; others use `help_with`")
    return done


def help_with(
    block: nn.Module,
    streams: Streams,
    run: RunBlock,
    plan: BlockPlan,
    ranks: Ranks,
    given: GivenBlock | None = None,
) -> None:
    """Do the share of another process than the first one, which calls `quantize_block` meanwhile.

    Args:
        block: As there, and so with all that is given here.
        streams: Tensors in memory that the processes share.
        run: Runs a block on a micro-batch of windows.
        plan: Settings, depth and export dtype.
        ranks: Which process this is, and the others.
        given: As there, a copy of its own.
    """
    _quantized(block, streams, run, plan, lambda event: None, ranks, given)


def _quantized(
    block: nn.Module,
    streams: Streams,
    unwatched: RunBlock,
    plan: BlockPlan,
    note: Callable[[str], None],
    ranks: Ranks,
    given: GivenBlock | None,
) -> QuantizedBlock | None:
    @no_type_check  # its checks count calls, and passes that wait inside a block end out of turn
    def run(part: nn.Module, hidden: Tensor) -> Tensor:
        ranks.check()
        return unwatched(part, hidden)

    note("solve")
    smooth = _smoothed(block, streams.x_q, run, plan, ranks)
    start = block if smooth is None else smooth.block
    quantized = _start(start, plan, given)
    x_q, tweaks, trains = streams.x_q, plan.norm_tweak.enabled, plan.training.enabled
    x_f = x_q.clone() if streams.x_f is x_q else streams.x_f
    again = tweaks or trains  # pass through the block once more
    before = streams.room("before") if again else x_q
    for part in share_of(x_q, ranks).parts if again else ():
        before[part] = x_q[part]
    both = Streams(x_f, x_q, streams.spare)
    solving = (block, quantized, both, run, plan, ranks, smooth)
    taking = (block, given, both, run, ranks)
    solved = quantize_linears(*solving) if given is None else take_linears(*taking)
    norms = {} if smooth is None else smooth.changed
    made = _Made(start, quantized, before, both, solved.layers, norms)
    quantized_drift = tweaked = trained = made.drift(ranks)
    tweak, training = None, None
    if tweaks:
        note("tweak")
        tweak = made.tweak(run, plan, ranks)
        tweaked = trained = made.drift(ranks) if tweak.accepted else quantized_drift
    if trains:
        note("train")
        training, accepted = made.train(run, plan, ranks)
        trained = made.drift(ranks) if accepted else tweaked
    note("finish")
    if not ranks.is_first:
        return None
    report = BlockReport(
        block=plan.index,
        layers=solved.reports,
        left_float=sorted(set(find_linears(block)) - set(solved.layers)),
        tweak=tweak,
        drift_quantized=quantized_drift.relative_norm,
        drift_tweaked=tweaked.relative_norm,
        mean_shift_quantized=quantized_drift.mean_shift,
        mean_shift_tweaked=tweaked.mean_shift,
        experts=list(solved.experts.values()),
        routed_alike=solved.routed_alike,
        training=training,
        drift_trained=None if training is None else trained.relative_norm,
    )
    return QuantizedBlock(
        made.layers, made.norms, report, made.behind, quantized_drift, tweaked, trained
    )


def _start(block: nn.Module, plan: BlockPlan, given: GivenBlock | None) -> nn.Module:
    """Return what becomes the quantized block: a copy of the float one, or that of others."""
    quantized = copy.deepcopy(block) if given is None else given.block
    round_norms(quantized, plan.export_dtype)
    if plan.quantization.activation_bits is not None:
        round_inputs(quantized, find_linears(quantized))
    return quantized


def _smoothed(
    block: nn.Module, x_q: Tensor, run: RunBlock, plan: BlockPlan, ranks: Ranks
) -> Smoothed | None:
    config = plan.quantization
    if config.activation_bits is None or not config.smoothing.enabled:
        return None
    return smoothed(block, x_q, run, config.smoothing, plan.export_dtype, ranks)


@dataclass
class _Made:
    """A block on its way: what it has become so far, and the streams behind it."""

    block: nn.Module  # float, smoothed where that is so
    quantized: nn.Module
    before: Tensor  # what the quantized model sees in front of it
    behind: Streams
    layers: dict[str, QuantizedWeight]
    norms: dict[str, Tensor]

    def drift(self, ranks: Ranks) -> Drift | None:
        """Return the drift behind the block as it is; of several processes, the first does."""
        return drift(self.behind.x_q, self.behind.x_f) if ranks.is_first else None

    def tweak(self, run: RunBlock, plan: BlockPlan, ranks: Ranks) -> TweakReport:
        """Train the norms on the statistics of the block's output."""
        target = self.behind.x_f
        if plan.norm_tweak.target == "local":
            target = run_stream(self.block, self.before, run, self.behind.room("target"), ranks)
        report, norms = _tweak(self.quantized, self.before, target, run, plan, ranks)
        self.norms = self.norms | norms
        if report.accepted:
            run_stream(self.quantized, self.before, run, self.behind.x_q, ranks)
        return report

    def train(
        self, run: RunBlock, plan: BlockPlan, ranks: Ranks
    ) -> tuple[BlockTraining | None, bool]:
        """Train weights, scales and norms on the block's output, and say whether that was kept.

        The first process does it, since its steps depend on each other; it has the report.
        """
        report = self._trained(run, plan) if ranks.is_first else None
        accepted = bool(ranks.number(report is not None and report.accepted))
        if accepted:
            for parameter in self.quantized.parameters():
                ranks.agree(parameter.data)
            run_stream(self.quantized, self.before, run, self.behind.x_q, ranks)
        return report, accepted

    def _trained(self, run: RunBlock, plan: BlockPlan) -> BlockTraining:
        config, dtype = plan.training.as_finetune(), plan.export_dtype
        on_grids = put_on_grids(
            copy.deepcopy(self.block).float(),
            self.layers,
            self.norms,
            config,
            plan.quantization.levels,
            dtype,
            plan.seed,
        )

        def in_float32(module: nn.Module, hidden: Tensor) -> Tensor:
            return run(module, hidden.float())

        report = train_on_grids(
            on_grids, self.before, self.behind.x_f, in_float32, config, plan.seed, plan.index
        )
        if report.accepted:
            trained = grid_linears(on_grids)
            self.layers = {name: layer.quantized() for name, layer in trained.items()}
            norms = {n: p.detach().float() for n, p in norm_parameters(on_grids).items()}
            self.norms = self.norms | norms
            made = quantized_copy(self.block, self.layers, self.norms, dtype)
            self.quantized.load_state_dict(made.state_dict())
        return report


def _tweak(
    quantized: nn.Module,
    x_q: Tensor,
    target: Tensor,
    run: RunBlock,
    plan: BlockPlan,
    ranks: Ranks,
) -> tuple[TweakReport, dict[str, Tensor]]:
    return tweak_norms(
        quantized,
        x_q,
        target,
        num_training_windows(len(x_q)),
        run,
        plan.norm_tweak,
        tweak_rate(plan.norm_tweak, plan.index, plan.num_blocks),
        plan.export_dtype,
        ranks,
    )
