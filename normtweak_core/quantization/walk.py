"""Walk the calibration windows through a model, block by block, float and quantized side by side.

walk = BlockWalk(StreamedModel(folder, torch.float32, "cpu"), input_ids)
streams = walk.start()
for index in range(walk.num_blocks):
    done = quantize_block(walk.load(index), streams, walk.runner(index), plan(index))
    streams = done.streams
"""

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from normtweak_core.model.streaming import BlockCall, StreamedModel
from normtweak_core.quantization.linears.given import GivenBlock
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.storage import quantized_copy
from normtweak_core.quantization.streams import Streams, micro_batches, run_stream
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.vision.windows import ImageWindows


@runtime_checkable
class Base(Protocol):
    """What others have quantized, by the names of the float model."""

    def streamed(self, source: Path, dtype: torch.dtype, device: str) -> StreamedModel:
        """Return the model with these weights, read block by block."""
        ...

    def below(self, prefix: str) -> dict[str, QuantizedWeight]:
        """Return the quantized linears of a block by their names in it."""
        ...


class BlockWalk:
    """Runs single blocks on calibration windows with each block's own masks and rotary tables."""

    def __init__(
        self,
        model: StreamedModel,
        input_ids: Int64[Tensor, "samples seq"] | ImageWindows,
        base: Base | None = None,
        source: Path | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        """Walk ``input_ids``, windows without padding, through ``model``.

        Args:
            model: The float model.
            input_ids: The windows.
            base: What the quantized stream starts from, where others have quantized the model.
            source: With it, folder of the float model.
            dtype: With it, what the float model computes in.
        """
        self.model, self.input_ids = model, input_ids
        self._base = base
        self._given = None if base is None else base.streamed(source, dtype, model.device)
        self._calls: dict[int, list[BlockCall]] = {}

    @property
    def num_blocks(self) -> int:
        """Number of decoder blocks."""
        return self.model.num_blocks

    def start(self) -> Streams:
        """Return both streams in front of the first block.

        They are the same tensor, but where others have quantized the model.
        """
        hidden = self._embedded(self.model)
        return Streams(hidden, hidden if self._given is None else self._embedded(self._given))

    def _embedded(self, model: StreamedModel) -> Tensor:
        parts = [model.embed(self.input_ids[p])[0].cpu() for p in micro_batches(self.input_ids)]
        return torch.cat(parts)

    def load(self, index: int) -> nn.Module:
        """Return a fresh float block."""
        return self.model.load_block(index)

    def given(self, index: int) -> GivenBlock | None:
        """Return a fresh block as others have quantized it; None where nobody has."""
        if self._given is None:
            return None
        layers = self._base.below(self._given.block_prefix(index))
        return GivenBlock(self._given.load_block(index), layers)

    def runner(self, index: int) -> RunBlock:
        """Return what runs block ``index`` on some windows."""

        def run(block: nn.Module, hidden: Tensor) -> Tensor:
            call = self._calls_for(len(hidden))[index]
            return self.model.run_block(block, hidden.to(self.model.device), call)

        return run

    def replay(
        self,
        index: int,
        streams: Streams,
        layers: dict[str, QuantizedWeight],
        norms: dict[str, Tensor],
        export_dtype: torch.dtype,
    ) -> Streams:
        """Return the streams behind a finished block: forward passes only, nothing is solved."""
        block, run = self.load(index), self.runner(index)
        given = self.given(index)
        start = block if given is None else given.block
        quantized = quantized_copy(start, layers, norms, export_dtype)
        return Streams(run_stream(block, streams.x_f, run), run_stream(quantized, streams.x_q, run))

    def _calls_for(self, batch: int) -> list[BlockCall]:
        # Without padding, masks depend on the number of windows only, not on what is in them: where
        # they hold images, all are laid out alike.
        if batch not in self._calls:
            self._calls[batch] = self.model.embed(self.input_ids[:batch])[1]
        return self._calls[batch]
