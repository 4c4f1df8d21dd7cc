"""A model whose blocks are read from disk one at a time and run one at a time.

The order of work is the model's own: its forward pass runs with blocks that only note how they
were called and hand the hidden state on. Masks and rotary embeddings differ between the blocks of
one model, so each block is later run with the arguments that it was called with itself.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from transformers import PreTrainedConfig, PreTrainedModel

from normtweak_core.errors import InputError
from normtweak_core.model import skeleton
from normtweak_core.model.structure import find_blocks
from normtweak_core.on_demand import num_bytes, origins_of, read_ends_when_run
from normtweak_core.vision.windows import ImageWindows, Windows, model_inputs

HIDDEN = "hidden_states"  # the name of a block's first argument throughout transformers
SEQUENCES = (tuple, list)  # what some families' blocks return, the hidden state first
KEPT_BYTES = 1 << 27  # of first blocks that stay in memory while a model is walked again and again


@dataclass(frozen=True)
class BlockCall:
    """How a model called one of its blocks, the hidden state left out.

    Masks have the batch and length of the call to `StreamedModel.embed` that recorded them.
    Blocks that were given the same tensor share it.
    """

    args: tuple[Any, ...]  # positional, after the hidden state
    kwargs: dict[str, Any]


# What reads the weights of a model, from the arguments of `skeleton.LazyWeights`.
OpenWeights = Callable[[PreTrainedModel, Path, torch.dtype, str], skeleton.LazyWeights]
# What a pass does at a block: from (index, hidden state, call) to the hidden state after it.
Visit = Callable[[int, Tensor, BlockCall], Tensor]


class StreamedModel:
    """A causal language model of which no more than the block at hand is in memory.

    Everything outside the blocks (embeddings, last norm, head) is read at construction; an
    embedding or head that is large is read again whenever it runs. Nothing here keeps a block
    that `load_block` returned. Not for use by two threads at once.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        device: str,
        open_weights: OpenWeights = skeleton.LazyWeights,
    ):
        """Read everything but the blocks.

        Args:
            folder: A model folder; see `normtweak_core.model.source`.
            dtype: Arithmetic of weights and hidden states.
            device: Where to compute, as torch names it.
            open_weights: What reads the weights, where it is not those of the folder.

        Raises:
            InputError: The folder holds no float decoder, or its weights do not fit its config.
            NonFiniteError: A weight outside the blocks is NaN or infinite.
        """
        model = skeleton.build_skeleton(folder, dtype)
        self._weights = open_weights(model, folder, dtype, device)
        self._templates = [copy.deepcopy(block) for block in find_blocks(model).modules]
        self._stand_in_for_blocks(model, device)
        self._load_rest()

    def _stand_in_for_blocks(self, model: PreTrainedModel, device: str) -> None:
        """Keep a model whose blocks are on the meta device."""
        self._model, self._device = model, device
        blocks = find_blocks(model)
        self._prefix, self._num_blocks = blocks.prefix, len(blocks.modules)
        self._list = model.get_submodule(blocks.prefix)
        self._visit: Visit | None = None
        # Found at the first pass; None: a bare tensor.
        self._probed, self._extra_outputs = False, None
        self._kept: dict[int, nn.Module] = {}
        for index, block in enumerate(blocks.modules):
            skeleton.mark_initialized(block)
            block.forward = _Stand(self, index)

    @property
    def device(self) -> str:
        """Where it computes, as torch names it."""
        return self._device

    @property
    def model(self) -> nn.Module:
        """The model; its blocks stand in for those on disk."""
        return self._model

    @property
    def config(self) -> PreTrainedConfig:
        """The transformers config, with the attention implementation that was chosen."""
        return self._model.config

    @property
    def num_blocks(self) -> int:
        """How many decoder blocks the model has."""
        return self._num_blocks

    def block_prefix(self, index: int) -> str:
        """Return the name of a block in the model, such as ``model.layers.3``."""
        return f"{self._prefix}.{range(self.num_blocks)[index]}"

    def load_block(self, index: int) -> nn.Module:
        """Return a fresh float block in eval mode, without gradients, read from disk.

        Raises:
            NonFiniteError: One of its weights is NaN or infinite.
            InputError: A weight has another shape than the config says.
        """
        prefix = self.block_prefix(index)
        block = copy.deepcopy(self._templates[index])
        skeleton.assign(block, prefix, self._weights.read(self._weights.names(prefix)))
        stand, self._list[index] = self._list[index], block
        try:
            self._compute_buffers(block)
        finally:
            self._list[index] = stand
        self._weights.finish(block, prefix)
        return block.eval().requires_grad_(False)

    def embed(
        self,
        input_ids: Int[Tensor, "batch tokens"] | ImageWindows,
        attention_mask: Shaped[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens hidden"], list[BlockCall]]:
        """Return what the first block receives, and how the model calls each of its blocks.

        Raises:
            InputError: The model does more between its blocks than hand the hidden state on.
        """
        seen: list[Tensor] = []
        calls: list[BlockCall] = []

        def note(index: int, hidden: Tensor, call: BlockCall) -> Tensor:
            if index != len(calls) or (seen and hidden is not seen[0]):
                raise InputError(
                    "the model must run its blocks in order, each on the output of the one "
                    f"before; {type(self._model).__name__} does something else at "
                    f"{self.block_prefix(index)}. Choose another model."
                )
            seen.append(hidden)
            calls.append(call)
            return hidden

        if attention_mask is not None:
            attention_mask = attention_mask.to(self._device)
        with torch.no_grad():
            self._forward(note, input_ids.to(self._device), attention_mask)
        if len(calls) != self.num_blocks:
            raise InputError(
                f"the model must run each of its {self.num_blocks} blocks; "
                f"{type(self._model).__name__} ran {len(calls)}. Choose another model."
            )
        return seen[0], calls

    @torch.no_grad()
    def walk(
        self, batches: Sequence[Int[Tensor, "_ tokens"] | ImageWindows]
    ) -> Iterator[list[Float[Tensor, "_ tokens hidden"]]]:
        """Yield what leaves each block in turn: a tensor for each batch, on the CPU.

        The list is the same one each time; asking for the next changes it.

        Args:
            batches: Token ids without padding.

        Raises:
            InputError: As `embed`.
        """
        states, calls = [], []
        for ids in batches:
            hidden, found = self.embed(ids)
            alike = (one for one in calls if _same(one, found))  # kept once
            calls.append(next(alike, found))
            states.append(hidden.cpu())
        for index in range(self.num_blocks):
            block = self._block(index)
            for place, hidden in enumerate(states):
                call = calls[place][index]
                states[place] = self.run_block(block, hidden.to(self._device), call).cpu()
            yield states

    def logits(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocab"]:
        """Return the logits of some tokens after one pass through all blocks."""
        *_, states = self.walk([input_ids])
        return self.head(states[0].to(self._device))

    def release(self) -> None:
        """Let go of the blocks that are in memory, once no more of them has to run."""
        self._kept.clear()

    @no_type_check  # its checks count calls, and passes that wait inside a block end out of turn
    def run_block(
        self, block: nn.Module, hidden: Float[Tensor, "batch tokens hidden"], call: BlockCall
    ) -> Float[Tensor, "batch tokens hidden"]:
        """Return a block's output; differentiable where the caller has enabled gradients."""
        output = block(hidden, *call.args, **call.kwargs)
        return output[0] if isinstance(output, SEQUENCES) else output

    def head(
        self, hidden: Float[Tensor, "batch tokens hidden"]
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Return the logits for the last block's output; differentiable like `run_block`.

        The model's own forward computes them, from its last norm on: whatever it does to its
        logits is done here too.
        """
        last = self.num_blocks - 1

        def inject(index: int, passing: Tensor, call: BlockCall) -> Tensor:
            return hidden if index == last else passing

        ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=self._device)
        return self._forward(inject, ids, torch.ones_like(ids)).logits

    def _forward(self, visit: Visit, windows: Windows, attention_mask: Tensor | None) -> Any:
        """Run the model with ``visit`` in the place of its blocks."""
        self._visit = visit
        try:
            return self._model(
                **model_inputs(windows),
                attention_mask=attention_mask,
                use_cache=False,
                return_dict=True,
            )
        finally:
            self._visit = None

    def _stand_in(self, index: int, hidden: Tensor, call: BlockCall) -> Any:
        """Do what the pass at hand does at a block; return it as the block would."""
        if not self._probed:
            with torch.no_grad():  # some families return a tensor, some a tuple
                output = self.load_block(index)(hidden, *call.args, **call.kwargs)
            self._extra_outputs = len(output) - 1 if isinstance(output, SEQUENCES) else None
            self._probed = True
        result = self._visit(index, hidden, call)
        if self._extra_outputs is None:
            return result
        return (result, *[None] * self._extra_outputs)

    def _block(self, index: int) -> nn.Module:
        """Return a block that is not to be changed, from memory where it was kept."""
        if index in self._kept:
            return self._kept[index]
        block = self.load_block(index)
        if sum(map(num_bytes, (*self._kept.values(), block))) <= KEPT_BYTES:
            self._kept[index] = block
        return block

    def _compute_buffers(self, block: nn.Module) -> None:
        """Compute the buffers of the one block that is in its place.

        Modules around it take part (Falcon-H1's model computes the mup_vector of its blocks).
        """
        parts = self._prefix.split(".")
        for depth in range(len(parts) + 1):
            self._model.get_submodule(".".join(parts[:depth]))._is_hf_initialized = False
        skeleton.compute_buffers(self._model, block.modules(), self._device)

    def _load_rest(self) -> None:
        """Read all tensors outside the blocks, compute their buffers, tie what is tied."""
        weights, model = self._weights, self._model
        names = sorted({*weights.names("")} - {*weights.names(self._prefix)})
        skeleton.assign(model, "", weights.read(names))
        for name in model.all_tied_weights_keys:
            model.get_parameter(name)._is_hf_initialized = True
        inside = f"{self._prefix}."
        outside = (one for name, one in model.named_modules() if not name.startswith(inside))
        skeleton.compute_buffers(model, outside, self._device)
        model.tie_weights(missing_keys=set(weights.missing), recompute_mapping=False)
        weights.finish(model, "")
        self._let_go_of_ends(names)

    def _let_go_of_ends(self, names: list[str]) -> None:
        """Have an embedding or head that is large read again whenever it runs."""
        origins = origins_of(self._model, names)
        read_ends_when_run(self._model, origins, lambda name: self._weights.read([name])[name])


class HeldModel(StreamedModel):
    """A model in memory that is walked block by block, as one that is read from disk."""

    def __init__(self, model: PreTrainedModel):
        """Take the blocks out of a model in eval mode, which runs no more by itself.

        Raises:
            InputError: It is no stack of blocks.
        """
        blocks = find_blocks(model)
        self._held = dict(enumerate(blocks.modules))
        stands = model.get_submodule(blocks.prefix)
        for index, block in self._held.items():
            stands[index] = copy.deepcopy(block).to("meta")
        self._stand_in_for_blocks(model, str(model.device))

    def load_block(self, index: int) -> nn.Module:
        """Return a block of the model itself, until it is released."""
        return self._held[index]

    def release(self) -> None:
        """Free all blocks: from now on only `head` can be asked."""
        super().release()
        self._held.clear()


def _same(one: list[BlockCall], other: list[BlockCall]) -> bool:
    """Say whether a model called its blocks twice with the same values."""
    nests = ([(call.args, call.kwargs) for call in calls] for calls in (one, other))
    (first, shape), (second, other_shape) = map(tree_flatten, nests)
    return shape == other_shape and all(map(_equal, first, second))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other)
    return type(one) is type(other) and one == other


class _Stand:
    """What a block's forward is while the blocks themselves are on disk."""

    def __init__(self, owner: StreamedModel, index: int):
        self._owner = weakref.proxy(owner)  # in a circle a model would outlive its use
        self._index = index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            hidden, *rest = args
        else:
            hidden, rest = kwargs.pop(HIDDEN), []
        return self._owner._stand_in(self._index, hidden, BlockCall(tuple(rest), kwargs))
