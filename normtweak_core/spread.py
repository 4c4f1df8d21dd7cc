"""A whole model where one device is too small for it.

As many blocks as there is room for stay in memory, on the device or on GPUs behind it; each of the
others is read from its files whenever it runs. Weights and operations are those of the model in
one piece, and so are the numbers, bit for bit on a CPU.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from normtweak_core.memory import KEPT, available_memory, fits
from normtweak_core.model.checkpoint import stored_tensors
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.skeleton import LazyWeights, load_config
from normtweak_core.model.streaming import BlockCall, OpenWeights, StreamedModel
from normtweak_core.on_demand import large_ends, num_bytes

logger = logging.getLogger(__name__)


def whole_or_spread(
    folder: Path, dtype: torch.dtype, device: str, beside: int = 0
) -> PreTrainedModel:
    """Return the model of a folder in eval mode, spread where it does not fit on its device.

    Args:
        folder: A model folder.
        dtype: What it computes in.
        device: Where it computes; of a GPU, those behind it are taken too where one is too small.
        beside: Bytes that will be taken there beside the model.

    Raises:
        InputError: As `load_causal_lm`.
    """
    load_config(folder)  # what is no model at all is told first
    if fits(model_bytes(folder, dtype), device, beside):
        return load_causal_lm(folder, dtype, device)
    return spread(folder, dtype, device, beside)


def spread(
    folder: Path,
    dtype: torch.dtype,
    device: str,
    beside: int = 0,
    open_weights: OpenWeights = LazyWeights,
) -> PreTrainedModel:
    """Return a model spread over what there is; the arguments are those of `whole_or_spread`.

    Args:
        folder: As there.
        dtype: As there.
        device: As there.
        beside: As there.
        open_weights: What reads the weights, where it is not those of the folder.
    """
    rooms = {one: int(KEPT * available_memory(one)) for one in devices_from(device)}
    rooms[device] -= beside
    return SpreadModel(folder, dtype, rooms, open_weights).whole


def model_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Return what the weights of a model take in a float type."""
    return sum(math.prod(one.shape) for one in stored_tensors(folder).values()) * dtype.itemsize


def devices_from(device: str) -> list[str]:
    """Return a device and, of a GPU, those behind it."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return [device]
    return [f"cuda:{one}" for one in range(int(number or 0), torch.cuda.device_count())]


class SpreadModel(StreamedModel):
    """A model that runs in one piece, whose blocks are where there is room for them."""

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        rooms: Mapping[str, int],
        open_weights: OpenWeights = LazyWeights,
    ):
        """Read what is outside the blocks; blocks are read when they first run.

        Args:
            folder: A model folder.
            dtype: What it computes in.
            rooms: Bytes that weights may take by device. The first one computes what is outside
                the blocks, and those that are read whenever they run.
            open_weights: What reads the weights, where it is not those of the folder.

        Raises:
            InputError: As `StreamedModel`.
            NonFiniteError: As `StreamedModel`.
        """
        device, self._rooms = next(iter(rooms)), dict(rooms)
        super().__init__(folder, dtype, device, open_weights)
        model = self._model
        self._rooms[device] -= sum(one.nbytes for one in model.parameters() if not one.is_meta)
        self._places = self._placed()
        kept = len(self._places)
        logger.info(
            "the model does not fit on %s: %d of its %d blocks stay in memory, and %d are read "
            "whenever they run",
            device,
            kept,
            self.num_blocks,
            self.num_blocks - kept,
        )

    @property
    def whole(self) -> PreTrainedModel:
        """The model, which reads its blocks by itself."""
        model = self._model
        if not isinstance(model, _InSeveralPlaces):
            kind = type(model)
            # Of the same module: what transformers takes for foreign code it leaves half made.
            where = {"__module__": kind.__module__}
            model.__class__ = type(kind.__name__, (_InSeveralPlaces, kind), where)
            model._home = torch.device(self._device)
            model._reader = self  # nobody else holds it
        return model

    def _placed(self) -> dict[int, str]:
        """Return where each block stays that there is room for, in their order."""
        places: dict[int, str] = {}
        open_to = iter(self._rooms.items())
        device, room = next(open_to)
        for index, template in enumerate(self._templates):
            size = num_bytes(template)
            while size > room:
                device, room = next(open_to, ("", -1))
                if not device:
                    return places
            places[index], room = device, room - size
        return places

    def _let_go_of_ends(self, names: list[str]) -> None:
        # One read anew for each token costs as much as a block that is.
        ends = sum(end.weight.nbytes for end in large_ends(self._model))
        if ends > self._rooms[self._device] // 2:
            super()._let_go_of_ends(names)

    def _block(self, index: int) -> nn.Module:
        if index in self._kept:
            return self._kept[index]
        block = self.load_block(index)
        if index in self._places:
            self._kept[index] = block.to(self._places[index])
        return block

    def _stand_in(self, index: int, hidden: Tensor, call: BlockCall) -> Any:
        if self._visit is not None:
            return super()._stand_in(index, hidden, call)
        block, given = self._block(index), (hidden, call.args, call.kwargs)
        place = self._places.get(index, self._device)
        caches = self._model._skip_keys_device_placement  # which know where their layers are
        hidden, args, kwargs = send_to_device(given, place, skip_keys=caches)
        return send_to_device(block(hidden, *args, **kwargs), self._device)


class _InSeveralPlaces:
    """What a model says of itself whose parameters are not all in one place."""

    _home: torch.device

    @property
    def device(self) -> torch.device:
        """Where its input is expected."""
        return self._home

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Stay."""
        return self
