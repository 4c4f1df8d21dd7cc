"""How far a model moves where one group of linears gets a width and all else stays float.

The cost of a width is measured where it counts: at the logits, as the divergence KL(float ||
quantized) on windows that are held out of the Hessians. A group is solved at each width on what the
float model hands it; its block runs with these weights, the blocks behind it as they are.
One block is in memory at a time, and of the held-out windows what each trial has made of them.
"""

import copy
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.distributed.ranks import ALONE
from normtweak_core.evaluate.divergence import compare_each
from normtweak_core.evaluate.predictions import Walked, batches, walked
from normtweak_core.model.structure import find_linears, linear_weight, set_linear_weight
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.gptq import split_rows
from normtweak_core.quantization.linears.experts import RoutedInputs, expert_statistics
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.linears.passes import FloatPasses, Stop
from normtweak_core.quantization.linears.solve import (
    LinearGroup,
    held_micro_batches,
    linear_groups_of,
    solved_weight,
)
from normtweak_core.quantization.streams import Streams, num_training_windows, run_stream, share_of
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.widths.budget import MEASURED_TOKENS
from normtweak_core.widths.report import GroupCost


class Measuring:
    """The float model on its walk over the calibration windows, measured block by block."""

    def __init__(self, walk: BlockWalk, config: QuantizationConfig, export_dtype: torch.dtype):
        """Walk the held-out windows to their end, which all trials are compared with.

        Args:
            walk: Of the float model over the calibration windows.
            config: Widths to try, and how a linear is quantized at each.
            export_dtype: What scales are rounded to.
        """
        self._walk, self._dtype = walk, export_dtype
        self._config = config.on_trial
        first = num_training_windows(len(walk.input_ids))
        count = max(1, MEASURED_TOKENS // walk.input_ids.shape[1])
        self._measured = slice(first, first + count)
        self._windows = batches(walk.input_ids[self._measured], None)
        self._float = walked(walk.model, walk.input_ids[self._measured])

        self._at, self._stream = 0, walk.start().x_f

    @torch.no_grad()
    def block(self, index: int) -> list[GroupCost]:
        """Return what each group of a block costs at each width.

        Args:
            index: Of the block, behind those that were asked for before.

        Raises:
            HessianError: A Hessian cannot be factorized.
            NonFiniteError: Activations or logits are not finite.
            InputError: The group size does not divide an input width.
        """
        while self._at < index:  # blocks that were measured by another process
            block, run = self._walk.load(self._at), self._walk.runner(self._at)
            run_stream(block, self._stream, run, self._stream)
            self._at += 1
        block, run, stream = self._walk.load(index), self._walk.runner(index), self._stream
        before = stream[self._measured].clone().split([len(ids) for ids in self._windows])
        trial, linears = copy.deepcopy(block), find_linears(block)
        groups, tried = [], []
        for solved in solved_groups(block, stream, run, self._config, self._dtype):
            groups.append(solved)
            for layers in solved.values():
                _put(trial, layers)
                tried.append([run(trial, hidden).cpu() for hidden in before])
            for name in layers:
                set_linear_weight(find_linears(trial)[name], linear_weight(linears[name]))
        self._at += 1
        found = iter(self._divergence(index, tried))
        return [
            GroupCost(
                block=index,
                linears={name: tuple(one.codes.shape) for name, one in layers.items()},
                divergence={width: next(found) for width in solved},
            )
            for solved in groups
            for layers in [next(iter(solved.values()))]
        ]

    def _divergence(self, index: int, tried: list[list[Tensor]]) -> list[float]:
        """Return nats per token of each trial, whose hidden states behind a block are given."""
        model = self._walk.model
        for later in range(index + 1, model.num_blocks):
            block, run = model.unchanged_block(later), self._walk.runner(later)
            for states in tried:
                for place, hidden in enumerate(states):
                    states[place] = run(block, hidden).cpu()
        trials = [Walked(model, states) for states in tried]
        compared = compare_each(trials, self._float, torch.cat(self._windows))
        return [one.kl.mean for one in compared]


def solved_groups(
    block: nn.Module,
    stream: Float[Tensor, "samples seq hidden"],
    run: RunBlock,
    config: QuantizationConfig,
    export_dtype: torch.dtype,
) -> Iterator[dict[int, dict[str, QuantizedWeight]]]:
    """Yield the linears of each group by width, solved on what the float model hands them.

    Args:
        block: Float block. Not modified.
        stream: In front of it; overwritten, when all groups were asked for.
        run: Runs it.
        config: Widths and method.
        export_dtype: What scales are rounded to.
    """
    groups = linear_groups_of(block, run, stream[:1])
    informed = config.method == "gptq"
    stops = [Stop(group.mixture or group.first) for group in groups if informed]
    share = share_of(stream, ALONE)
    held = held_micro_batches(groups, Streams(stream, stream), propagated=True)
    with FloatPasses(block, run, stream, share, stops, held) as passes:
        for index, group in enumerate(groups):
            found: dict[int, dict[str, QuantizedWeight]] = {width: {} for width in config.widths}
            if not informed:
                parts = [(LinearGroup({n: m}), None) for n, m in group.modules.items()]
            elif group.mixture is None:
                H, _ = group.statistics(passes.at(index), None, share.leaves)
                parts = [(group, H)]
            else:
                parts = _experts(block, group, RoutedInputs.of(passes.at(index), None), config)
            for part, H in parts:
                for width in config.widths:
                    found[width] |= _solved(part, H, config.at(width), export_dtype)
            yield found
        passes.finish()


def _solved(
    group: LinearGroup, H: Tensor | None, settings: QuantizationConfig, export_dtype: torch.dtype
) -> dict[str, QuantizedWeight]:
    weights = group.weights
    solved = solved_weight(torch.cat(weights), H, settings, export_dtype)
    parts = split_rows(solved.weight, [len(weight) for weight in weights])
    return dict(zip(group.modules, parts, strict=True))


def _experts(
    block: nn.Module, group: LinearGroup, inputs: RoutedInputs, config: QuantizationConfig
) -> Iterator[tuple[LinearGroup, Tensor | None]]:
    experts = block.get_submodule(group.mixture)
    rule = config.experts
    for names, statistics, _ in expert_statistics(experts, experts, group.mixture, inputs, rule):
        part = LinearGroup({name: group.modules[name] for name in names})
        yield part, None if statistics is None else statistics.hessian()


def _put(block: nn.Module, layers: Mapping[str, QuantizedWeight]) -> None:
    linears = find_linears(block)
    for name, weight in layers.items():
        set_linear_weight(linears[name], weight.dequantize())
