"""A few tokens through all that a run does to a model, before it begins.

What cannot go through is refused in seconds and not after an hour. The whole float model is in
memory for the reference, as it is in the stages that follow; what is compared with it is read block
by block. Of each type of block the first and the last one are looked at: types are told apart by
their modules and sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Int64
from pydantic import BaseModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.export.formats.conv1d import ternary_conv1d_error
from normtweak_core.export.formats.filled_in import require_gptq_opened, require_packed_opened
from normtweak_core.export.verification.probe import streaming_model
from normtweak_core.model.architecture import first_line
from normtweak_core.model.loading import mapped_causal_lm
from normtweak_core.model.skeleton import LazyWeights, build_skeleton
from normtweak_core.model.streaming import SEQUENCES, BlockCall, StreamedModel
from normtweak_core.model.structure import Blocks, find_blocks, find_linears
from normtweak_core.quantization.linears.inputs import linear_groups
from normtweak_core.read_only import ReadOnlyWeights
from normtweak_core.tweak.tweak import WithMasters, norm_parameters

WINDOWS, TOKENS = 2, 4
TOLERANCE = 1e-2  # of the largest value; the same arithmetic in the same order is far closer
# What the code of a model raises when it is run in pieces that it was not written for.
RAISED = (RuntimeError, TypeError, AttributeError, LookupError, AssertionError, ValueError)
OTHER = "Choose another model."


class DryRun(BaseModel, frozen=True):
    """What was looked at."""

    blocks: list[int]  # that stand for all others
    uncalled: list[str]  # linears whose weight is read without a call, if at all; they stay float


@dataclass
class _Seen:
    """What the model's own forward pass shows."""

    logits: Tensor | None = None
    inputs: dict[int, Tensor] = field(default_factory=dict)  # by block
    outputs: dict[int, Tensor] = field(default_factory=dict)


def dry_run(
    folder: Path,
    dtype: torch.dtype,
    device: str,
    num_blocks: int,
    streams: bool = True,
    rounds: bool = False,
    form: str = "auto",
    mixed: bool = False,
) -> DryRun:
    """Return what was looked at of a model that can be quantized, exported and verified.

    Args:
        folder: The float model.
        dtype: What it computes in.
        device: Where.
        num_blocks: As its weight files number them.
        streams: Whether the run takes the model block by block; ternary training does not.
        rounds: Whether its linears are to read rounded activations.
        form: Of the export.
        mixed: Whether its linears may come to have several widths.

    Raises:
        InputError: The model works in a way that a run cannot follow; block and module are named.
        NonFiniteError: Its logits are not finite, or one of its weights.
    """
    skeleton = build_skeleton(folder, dtype)
    blocks = find_blocks(skeleton)
    if len(blocks.modules) != num_blocks:
        raise InputError(
            f"the weight files must number the blocks of the model; they number {num_blocks}, and "
            f"{type(skeleton).__name__} has {len(blocks.modules)}. {OTHER}"
        )
    _require_own_weights(skeleton, blocks)
    chosen = _representatives(blocks.modules)
    for index in chosen if not streams else ():
        for name, linear in find_linears(blocks.modules[index]).items():
            if isinstance(linear, Conv1D):
                raise ternary_conv1d_error(f"{blocks.prefix}.{index}.{name}")
    ids = _tokens(skeleton, 0)
    # Before the model is read: names and sizes of its weights are looked at here.
    weights = _FloatWeights(skeleton, folder, dtype)
    seen = _own_forward(folder, dtype, device, ids, chosen)
    uncalled = []
    if streams:
        with _told(skeleton, "running its blocks apart"):
            streamed = StreamedModel(folder, dtype, device)
            uncalled = _check_blocks(streamed, seen, chosen, ids, _tokens(skeleton, 1), rounds)
            last = streamed.num_blocks - 1
            with torch.no_grad():
                logits = streamed.head(seen.outputs[last])
        _compare(logits, seen.logits, skeleton, "what it does behind its last block")
    with _told(skeleton, "reading its weights block by block"), torch.inference_mode():
        logits = streaming_model(weights, folder, dtype)[0](input_ids=ids, use_cache=False).logits
    _compare(logits, seen.logits, skeleton, "its forward pass with weights read block by block")
    if form == "gptq":
        require_gptq_opened(skeleton, _quantized(blocks, uncalled))
    elif rounds or mixed:
        require_packed_opened(skeleton, _quantized(blocks, uncalled), rounds)
    return DryRun(blocks=chosen, uncalled=uncalled)


def _require_own_weights(model: PreTrainedModel, blocks: Blocks) -> None:
    tied = model.all_tied_weights_keys.items()
    if shared := next((pair for pair in tied if pair[0].startswith(f"{blocks.prefix}.")), None):
        raise InputError(
            f"each block must have weights of its own; in {type(model).__name__} {shared[0]} is "
            f"that of {shared[1]}. {OTHER}"
        )


def _quantized(blocks: Blocks, uncalled: list[str]) -> dict[str, nn.Module]:
    """Return the linears that a run quantizes by their full names."""
    return {
        f"{blocks.prefix}.{index}.{name}": linear
        for index, block in enumerate(blocks.modules)
        for name, linear in find_linears(block).items()
        if f"{type(block).__name__}.{name}" not in uncalled
    }


def _representatives(blocks: list[nn.Module]) -> list[int]:
    """Return the first and the last block of each type, and the last of all."""
    types: dict[str, list[int]] = {}
    for index, block in enumerate(blocks):
        types.setdefault(repr(block), []).append(index)
    ends = {end for alike in types.values() for end in (alike[0], alike[-1])}
    return sorted(ends | {len(blocks) - 1})


def _tokens(model: PreTrainedModel, salt: int) -> Int64[Tensor, "windows tokens"]:
    """Return ids without padding; another salt gives other ones."""
    config = model.config.get_text_config()
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
    named = {i for one in special for i in (one if isinstance(one, list) else [one])}
    ordinary = [i for i in range(config.vocab_size) if i not in named] or [0]
    places = torch.arange(WINDOWS * TOKENS) * 7919 + 13 + 101 * salt
    return torch.tensor(ordinary)[places % len(ordinary)].reshape(WINDOWS, TOKENS)


def _own_forward(
    folder: Path, dtype: torch.dtype, device: str, ids: Tensor, chosen: list[int]
) -> _Seen:
    """Return what the model computes that ``from_pretrained`` makes, which is dropped again."""
    model, seen = mapped_causal_lm(folder, dtype, device), _Seen()
    blocks = find_blocks(model).modules

    def note(index: int, args: tuple, kwargs: dict, output: object) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        # Copies: a block may write to its input, and the next one to its output.
        seen.outputs[index] = (output[0] if isinstance(output, SEQUENCES) else output).clone()
        seen.inputs[index] = before.pop(index, hidden)

    before: dict[int, Tensor] = {}

    def keep(index: int, args: tuple, kwargs: dict) -> None:
        before[index] = (args[0] if args else kwargs["hidden_states"]).clone()

    for index in chosen:
        blocks[index].register_forward_pre_hook(
            lambda _, args, kwargs, index=index: keep(index, args, kwargs), with_kwargs=True
        )
        blocks[index].register_forward_hook(
            lambda _, args, kwargs, output, index=index: note(index, args, kwargs, output),
            with_kwargs=True,
        )
    with _told(model, "its own forward pass"), torch.no_grad(), ReadOnlyWeights(model):
        seen.logits = model(input_ids=ids.to(device), use_cache=False).logits
    if not seen.logits.isfinite().all():
        raise NonFiniteError(
            "the float model must give finite logits; those of a few ordinary tokens are not: "
            "check its weights and model.dtype"
        )
    if missing := [index for index in chosen if index not in seen.outputs]:
        raise InputError(
            f"a model must run each of its blocks; {type(model).__name__} does not run block "
            f"{missing[0]}. {OTHER}"
        )
    return seen


def _check_blocks(
    streamed: StreamedModel,
    seen: _Seen,
    chosen: list[int],
    ids: Tensor,
    others: Tensor,
    rounds: bool,
) -> list[str]:
    """Accept blocks that compute what they compute inside the model; return uncalled linears."""
    uncalled: dict[str, None] = {}
    for index in chosen:
        x, wanted = seen.inputs[index], seen.outputs[index]
        block = streamed.load_block(index)
        where = f"block {index} ({type(block).__name__})"
        if x.dim() != 3 or x.shape[:2] != ids.shape:
            raise InputError(
                "the hidden state between blocks must be [windows, tokens, channels]; that before "
                f"{where} of {type(streamed.model).__name__} is {list(x.shape)}. {OTHER}"
            )
        # Recorded anew, on other text: what a block was given must not be of the text, or of a
        # block that has run before it.
        call = streamed.embed(others)[1][index]
        with _told(streamed.model, f"running {where} apart"), torch.no_grad():
            found = streamed.run_block(block, x, call)
        _compare(found, wanted, streamed.model, f"{where}, run apart with other text before it")
        with _told(streamed.model, f"collecting what the linears of {where} read"):
            for name in _uncalled(streamed, block, x, call, where):
                uncalled[f"{type(block).__name__}.{name}"] = None
        if rounds:
            _require_tokens(streamed, block, x, call, where)
        with _told(streamed.model, f"training the norms of {where}"):
            _train_norms(streamed, block, x, call)
    return list(uncalled)


def _uncalled(
    streamed: StreamedModel, block: nn.Module, x: Tensor, call: BlockCall, where: str
) -> list[str]:
    """Return the linears that no call reaches, of a block that calls the others once."""
    where = f"{where} of {type(streamed.model).__name__}"
    groups = linear_groups(block, lambda part, hidden: streamed.run_block(part, hidden, call), x)
    called = [name for names in groups for name in names]
    if not called:
        raise InputError(
            f"a block must call linears; none of {where} is called, so that nothing of it could be "
            f"quantized. {OTHER}"
        )
    if twice := [name for name in called if called.count(name) > 1]:
        raise InputError(
            f"a linear must be called once in its block; {twice[0]} of {where} is called again, on "
            f"another input. {OTHER}"
        )
    return [name for name in find_linears(block) if name not in called]


def _require_tokens(
    streamed: StreamedModel, block: nn.Module, x: Tensor, call: BlockCall, where: str
) -> None:
    """Accept a block whose linears read windows of tokens, whose activations are told apart."""
    read: dict[str, list[int]] = {}
    for name, linear in find_linears(block).items():
        linear.register_forward_pre_hook(
            lambda _, args, name=name: read.setdefault(name, list(args[0].shape)) and None
        )
    with torch.no_grad():
        streamed.run_block(block, x, call)
    odd = {name: shape for name, shape in read.items() if len(shape) != 3}
    for name, shape in odd.items():
        told = f"{name} of {where} of {type(streamed.model).__name__} reads {shape}"
        raise InputError(
            "must be null where a linear reads no [windows, tokens, channels], by which readers "
            "tell tokens apart",
            found=f"{told}, which they would round with one scale for a whole batch",
            remedy="remove it, or choose another model",
            key="quantization.activation_bits",
        )


def _train_norms(streamed: StreamedModel, block: nn.Module, x: Tensor, call: BlockCall) -> None:
    masters = {
        name: parameter.detach().float().clone().requires_grad_(True)
        for name, parameter in norm_parameters(block).items()
    }
    if masters:
        with torch.enable_grad():
            streamed.run_block(WithMasters(block, masters), x, call).float().sum().backward()


class _FloatWeights:
    """The weights of the float model, as `streaming_model` reads those of an export."""

    ternary = False
    rounded: list[str] = []  # noqa: RUF012 - none

    def __init__(self, skeleton: PreTrainedModel, folder: Path, dtype: torch.dtype):
        self._weights = LazyWeights(skeleton, folder, dtype, "cpu")
        self._names = set(self._weights.names(""))

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str) -> Tensor:
        return self._weights.read([name])[name]


def _compare(found: Tensor, wanted: Tensor, model: PreTrainedModel, what: str) -> None:
    """Accept what equals the model's own.

    Raises:
        InputError: It is something else.
    """
    same_shape = found.shape == wanted.shape
    scale = wanted.float().abs().max().clamp(min=1e-30)
    error = (found.to(wanted.device) - wanted).float().abs().max() / scale if same_shape else None
    if error is None or not error <= TOLERANCE:  # also true for NaN
        told = f"by {error:.2g} of the largest value" if same_shape else "in shape"
        raise InputError(
            "a model must compute the same block by block as in one piece; "
            f"{type(model).__name__} does not: {what} differs from its own forward pass {told}. "
            f"{OTHER}"
        )


@contextmanager
def _told(model: nn.Module, what: str) -> Iterator[None]:
    """Say of an error that a model's code raises what was asked of it."""
    try:
        yield
    except (InputError, NonFiniteError, torch.OutOfMemoryError):
        raise
    except RAISED as error:
        raise InputError(
            f"a model must run block by block; {what} ends, for {type(model).__name__}, in "
            f"{type(error).__name__}: {first_line(error)}. {OTHER}"
        ) from error
