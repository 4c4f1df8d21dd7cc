"""What a model keeps of the tokens before while it writes, and how many windows fit with it.

Every model makes its own cache. Layers of it that keep all keys and values are given room for a
whole window at once: a token is then written in its place, where transformers joins it to a copy of
all before it, and attention reads as far as the window has come. transformers' StaticCache reads
the whole room, with a mask, for every token: what is read twice over there would also be summed in
another order. Layers with a window that slides or a state of constant size stay the model's own.
"""

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from normtweak_core.errors import InputError
from normtweak_core.experts.stacked import find_mixtures
from normtweak_core.memory import available_memory

MAX_WINDOWS = 128  # more of them than this make a token hardly cheaper
SHARES = {"cpu": 0.5, "cuda": 0.8}  # of what is free; on its own memory a machine does other things
NAMES = ("past_key_values", "cache_params", "state")  # of attention, Mamba, RWKV
GROWN = ("keys", "values", "indexer_keys")  # of a layer of a cache, by every token
STATES = ("conv_states", "recurrent_states")  # of constant size


class _RoomyLayer(DynamicLayer):
    """Keys and values of a layer inside tensors as long as a window."""

    def __init__(self, grown: DynamicLayer, length: int):
        super().__init__()
        self.dtype, self.device = grown.dtype, grown.device
        self._rooms = tuple(
            one.new_empty((*one.shape[:-2], length, one.shape[-1]))
            for one in (grown.keys, grown.values)
        )
        self.is_initialized = True
        self.keys, self.values = (room[..., :0, :] for room in self._rooms)
        self.update(grown.keys, grown.values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the states behind those that are there, and return all."""
        begin = self.keys.shape[-2]
        end = begin + key_states.shape[-2]
        keys, values = self._rooms
        keys[..., begin:end, :] = key_states
        values[..., begin:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values


def cache_name(model: PreTrainedModel) -> str:
    """Return what a model calls that which it keeps of the tokens before.

    Raises:
        InputError: It keeps nothing.
    """
    accepted = inspect.signature(model.forward).parameters
    for name in NAMES:
        if name in accepted:
            return name
    raise _keeps_nothing(model)


def _keeps_nothing(model: PreTrainedModel) -> InputError:
    return InputError(
        f"text must be written by a model that keeps what it has read; {type(model).__name__} "
        "does not",
        key="calibration.source",
        remedy="choose text or dataset",
    )


def make_room(cache: Any, length: int) -> None:
    """Give the layers of a cache that keep everything room for `length` tokens."""
    if isinstance(cache, Cache):
        cache.layers = [
            _RoomyLayer(layer, length) if type(layer) is DynamicLayer else layer
            for layer in cache.layers
        ]


@torch.no_grad()
def window_bytes(model: PreTrainedModel, length: int) -> int:
    """Return what a window takes while it is written: cache and logits. Runs one token.

    Args:
        model: On any device; on `meta` it needs no weights.
        length: Tokens of the window.

    Raises:
        InputError: It keeps nothing, or does not hand it out.
    """
    name = cache_name(model)
    if model.device.type == "meta" and find_mixtures(model):
        model.set_experts_implementation("batched_mm")  # the default multiplies only bfloat16 there
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    out = model(input_ids=token, use_cache=True)
    logits = out.logits.shape[-1] * (out.logits.itemsize + 2 * 4)  # with two float32 copies
    if (cache := out.get(name)) is None:  # RecurrentGemma keeps it in its modules
        raise _keeps_nothing(model)
    if not isinstance(cache, Cache):
        return logits + _tensor_bytes(cache)
    return logits + sum(_layer_bytes(layer, length) for layer in cache.layers)


def _layer_bytes(layer: Any, length: int) -> int:
    most = layer.get_max_length()  # -1 where there is no end
    kept = length if most < 0 else min(length, most)
    grown, states = (
        _tensor_bytes([getattr(layer, name, ()) for name in names]) for names in (GROWN, STATES)
    )
    return kept * grown + states


def _tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def windows_at_once(bytes_each: int, samples: int, device: str, taken: int = 0) -> int:
    """Return how many windows are written together: in as few batches as what is free allows.

    The batches are of equal size, which then hardly depends on what happens to be free: in bfloat16
    a window may depend on the size of its batch.

    Args:
        bytes_each: As `window_bytes` counts them.
        samples: Windows in all.
        device: Where the model is.
        taken: Bytes that something else will take before.
    """
    share = SHARES[torch.device(device).type] * (available_memory(device) - taken)
    most = max(1, min(MAX_WINDOWS, int(share) // bytes_each))
    return math.ceil(samples / math.ceil(samples / most))
