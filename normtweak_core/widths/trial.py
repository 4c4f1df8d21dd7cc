"""Every linear at every width that it may get: solved on what the float model hands it.

One block is in memory at a time; what is solved is written down, since a cost is measured with all
other blocks at their narrowest.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from normtweak_core.distributed.ranks import ALONE
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.gptq import split_rows
from normtweak_core.quantization.linears.groups import (
    LinearGroup,
    held_micro_batches,
    linear_groups_of,
)
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.linears.passes import FloatPasses, Stop
from normtweak_core.quantization.linears.solve import solved_weight
from normtweak_core.quantization.storage import load_block, save_block
from normtweak_core.quantization.streams import Streams, run_stream, share_of
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.quantization.weight import QuantizedWeight

# The linears of a group by name in their block, at each width.
GroupTrial = Mapping[int, Mapping[str, QuantizedWeight]]


class Trials:
    """The float model on its walk over the calibration windows, solved block by block."""

    def __init__(self, walk: BlockWalk, config: QuantizationConfig, export_dtype: torch.dtype):
        """Stand in front of the first block.

        Args:
            walk: Of the float model over the calibration windows.
            config: Widths to try, and how a linear is quantized at each.
            export_dtype: What scales are rounded to.
        """
        self._walk, self._config, self._dtype = walk, config.on_trial, export_dtype
        self._at, self._stream = 0, walk.start().x_f

    @torch.no_grad()
    def block(self, index: int) -> list[GroupTrial]:
        """Return the groups of a block, in the order in which they are called.

        Args:
            index: Of the block, behind those that were asked for before.

        Raises:
            HessianError: A Hessian cannot be factorized.
            NonFiniteError: Activations are not finite.
            InputError: The group size does not divide an input width.
        """
        while self._at < index:  # blocks that are there already
            run = self._walk.runner(self._at)
            run_stream(self._walk.load(self._at), self._stream, run, self._stream)
            self._at += 1
        self._at += 1
        block, run = self._walk.load(index), self._walk.runner(index)
        return list(_solved_groups(block, self._stream, run, self._config, self._dtype))


def _solved_groups(
    block: nn.Module,
    stream: Float[Tensor, "samples seq hidden"],
    run: RunBlock,
    config: QuantizationConfig,
    export_dtype: torch.dtype,
) -> Iterator[GroupTrial]:
    """Yield the groups of a block; the stream becomes that behind it when all were asked for."""
    groups = linear_groups_of(block, run, stream[:1])
    informed = config.method == "gptq"
    stops = [Stop(group.first) for group in groups if informed]
    share = share_of(stream, ALONE)
    held = held_micro_batches(groups, Streams(stream, stream), propagated=True)
    with FloatPasses(block, run, stream, share, stops, held) as passes:
        for index, group in enumerate(groups):
            H = None
            if informed:
                H, _ = group.statistics(passes.at(index), None, share.leaves)
            yield {
                width: _solved(group, H, config.at(width), export_dtype) for width in config.widths
            }
        passes.finish()


def _solved(
    group: LinearGroup, H: Tensor | None, settings: QuantizationConfig, export_dtype: torch.dtype
) -> dict[str, QuantizedWeight]:
    weights = group.weights
    solved = solved_weight(torch.cat(weights), H, settings, export_dtype)
    parts = split_rows(solved.weight, [len(weight) for weight in weights])
    return dict(zip(group.modules, parts, strict=True))


def save_trials(path: Path, groups: list[GroupTrial]) -> None:
    """Write the groups of a block."""
    layers = {
        f"{width}/{number:03d}/{name}": weight
        for number, group in enumerate(groups)
        for width, linears in group.items()
        for name, weight in linears.items()
    }
    save_block(path, layers, {})


def load_trials(path: Path, config: QuantizationConfig) -> list[GroupTrial]:
    """Return what `save_trials` wrote; groups of columns come from the config."""
    with safe_open(path, framework="pt") as file:
        names = [key.removeprefix("codes.") for key in file.keys() if key.startswith("codes.")]
    layers, _ = load_block(path, config, {name: int(name.split("/")[0]) for name in names})
    groups: dict[str, dict[int, dict[str, QuantizedWeight]]] = {}
    for key, weight in layers.items():
        _, number, name = key.split("/")
        groups.setdefault(number, {}).setdefault(weight.bits, {})[name] = weight
    return [dict(sorted(groups[number].items())) for number in sorted(groups)]
