"""What the parts of a run cost on this machine now, tried on one block of the model itself.

A few hundred tokens pass through the block as in a run, and a few rows of each weight are solved;
what grows with tokens or rows is told per token or row, so that the trial costs a small part of
what it tells of. Random tokens do as well as text: nothing here depends on what they say.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from normtweak_core.evaluate.divergence import compare_each
from normtweak_core.model.half import sum_in_float32
from normtweak_core.model.streaming import BlockCall, StreamedModel
from normtweak_core.model.structure import find_linears, linear_weight
from normtweak_core.model.tokenizer import load_tokenizer
from normtweak_core.model.tokenizer_files import tokenizer_files
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.drift import drift
from normtweak_core.quantization.hessian import InputStatistics, corrected_weight
from normtweak_core.quantization.linears.inputs import linear_groups
from normtweak_core.quantization.linears.solve import solved_weight
from normtweak_core.training.objective import divergence
from normtweak_core.tweak.tweak import WithMasters, norm_parameters

TOKENS = 512  # that pass through the block
# Of a weight, that are solved one after the other; the more would not stay in a cache.
ROWS = (32, 544)
PREDICTED = 48  # tokens whose logits are compared


@dataclass(frozen=True)
class Costs:
    """Seconds; of a block where nothing else is said."""

    opened: float  # what is outside the blocks of a model, and its tokenizer
    load: float  # reading it
    forward: float  # of a token
    half: float  # of a token in float16
    step: float  # of a token, forward and backward with norms that are trained
    written: float  # of a token that follows others, for each window that is written at once
    statistics: float  # of a token, at all groups of linears
    solve: float  # by the method of the recipe, with the factors of all groups
    rounding: float  # to nearest
    drift: float  # of a token, with the hashes of both streams
    head: float  # of a token: logits of the model, not of a block
    head_step: float  # the same with the way back, and the divergence of two models
    compared: float  # of a token: logits of an evaluation beside those of the float model


def tried(
    folder: Path, dtype: torch.dtype, device: str, length: int, config: QuantizationConfig
) -> Costs:
    """Return what the first block of a model costs.

    Args:
        folder: Of the float model.
        dtype: Of the arithmetic.
        device: Where to compute.
        length: Tokens of a window.
        config: How linears are quantized.
    """
    opened = _seconds(lambda: _open(folder, dtype, device))
    model = StreamedModel(folder, dtype, device)
    vocabulary = model.model.get_input_embeddings().weight.shape[0]
    windows = max(1, TOKENS // length)
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (windows, length), generator=random)
    hidden, calls = model.embed(ids)
    first, first_call = model.embed(ids[:1])
    block, tokens = model.load_block(0), ids.numel()
    with torch.no_grad():
        one_token, one_call = model.embed(ids.flatten()[:windows, None])
        half = _half(block)
        head = _seconds(lambda: model.head(hidden[:1])) / length
        costs = {
            "load": _seconds(lambda: model.load_block(0)),
            "forward": _seconds(lambda: model.run_block(block, hidden, calls[0])) / tokens,
            "half": _seconds(lambda: model.run_block(half, first.half(), _halved(first_call[0])))
            / length,
            "written": _seconds(lambda: model.run_block(block, one_token, one_call[0])) / windows,
            "drift": _seconds(lambda: drift(hidden, hidden)) / tokens,
        }
        solved = _solving(model, block, first, first_call[0], config)
    return Costs(
        **costs,
        **solved,
        opened=opened,
        head=head,
        step=_seconds(lambda: _step(model, block, first, first_call[0])) / length,
        head_step=_seconds(lambda: _head_step(model, first)) / length,
        compared=_compared(vocabulary),
    )


def _seconds(work: Callable[[], object], times: int = 2) -> float:
    """Return the seconds of the fastest time; with one thread those of the processor."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    found = []
    for _ in range(times):
        began = clock()
        work()
        found.append(clock() - began)
    return min(found)


def _open(folder: Path, dtype: torch.dtype, device: str) -> None:
    StreamedModel(folder, dtype, device)
    if tokenizer_files(folder):
        load_tokenizer(folder)


def _half(block: nn.Module) -> nn.Module:
    half = copy.deepcopy(block).half()
    sum_in_float32(half)
    return half


def _halved(call: BlockCall) -> BlockCall:
    def cast(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(cast, value))
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.half() if is_float else value

    return BlockCall(cast(call.args), {name: cast(value) for name, value in call.kwargs.items()})


def _step(model: StreamedModel, block: nn.Module, hidden: Tensor, call: BlockCall) -> None:
    masters = {
        name: one.detach().float().clone().requires_grad_(True)
        for name, one in norm_parameters(block).items()
    }
    if not masters:
        return
    with torch.enable_grad():
        given = hidden.detach().clone().requires_grad_(True)
        model.run_block(WithMasters(block, masters), given, call).float().square().mean().backward()


def _head_step(model: StreamedModel, hidden: Tensor) -> None:
    with torch.enable_grad():
        logits = model.head(hidden.detach().clone().requires_grad_(True))
        divergence(logits.detach(), logits).backward()


def _compared(vocabulary: int) -> float:
    """Return the seconds in which the logits of a token are compared with the float model's."""
    logits = torch.randn(1, PREDICTED, vocabulary, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(1, PREDICTED, dtype=torch.int64)

    def told(_: Tensor) -> Tensor:
        return logits

    return _seconds(lambda: compare_each([told], told, ids)) / PREDICTED


def _solving(
    model: StreamedModel,
    block: nn.Module,
    hidden: Tensor,
    call: BlockCall,
    config: QuantizationConfig,
) -> dict[str, float]:
    """Return what statistics cost of a token, and solving and rounding of the block."""
    linears, narrow = find_linears(block), config.at(config.widths[0])
    found = {"statistics": 0.0, "solve": 0.0, "rounding": 0.0}
    groups = linear_groups(block, lambda one, given: model.run_block(one, given, call), hidden)
    weights = [linear_weight(linears[name]).float() for names in groups for name in names]
    # Experts of a mixture are one group, and read inputs of two widths.
    places = [(place, name) for place, names in enumerate(groups) for name in names]
    stacks: dict[tuple[int, int], list[Tensor]] = {}
    for (place, _), weight in zip(places, weights, strict=True):
        stacks.setdefault((place, weight.shape[1]), []).append(weight)
    for W in map(torch.cat, stacks.values()):
        rows, width = W.shape
        x = torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(0))
        x = x.to(W.device)

        def add(x: Tensor = x, W: Tensor = W) -> InputStatistics:
            statistics = InputStatistics(x.shape[1], W.device)
            statistics.add_both(x, x + 0.01)
            return statistics

        statistics = add()
        found["statistics"] += _seconds(add) / TOKENS
        H, C = statistics.hessian(), statistics.cross()

        def solve(count: int, W: Tensor = W, H: Tensor = H, C: Tensor = C) -> None:
            part, ridge = W[:count], config.propagation.ridge
            if config.propagation.alpha:
                part = corrected_weight(part, H, part @ C, config.propagation.alpha, ridge).weight
            solved_weight(part, H, narrow, torch.float16)

        def rounded(count: int, W: Tensor = W) -> None:
            solved_weight(W[:count], None, narrow, torch.float16)

        found["solve"] += _of_all_rows(solve, rows)
        found["rounding"] += _of_all_rows(rounded, rows)
    return found


def _of_all_rows(work: Callable[[int], None], rows: int) -> float:
    """Return what all rows take, from what few and more of them do."""
    few, more = (min(rows, one) for one in ROWS)
    short, long = (_seconds(lambda count=count: work(count), 1) for count in (few, more))
    return short + max(0.0, long - short) * (rows - few) / max(1, more - few)
