"""Statistics of the experts of one mixture: each from the tokens that are routed to it.

T_e are the N_e calibration tokens that the router of the *quantized* stream gives to expert e, x_t
and f_t what the mixture reads of token t in the quantized and in the float stream. For gate_proj
and up_proj, which read x,

    H_e = 2/N_e sum_{t in T_e} x_t x_t^T        C_e = 2/N_e sum_{t in T_e} (f_t - x_t) x_t^T

and for down_proj the same of z_t = act(G' x_t) * (U' x_t), with the quantized G' and U' of the
expert, and of g_t = act(G f_t) * (U f_t), with the float ones. The float router may have given the
token to another expert; the pair is one all the same, since f_t is what expert e *would* have read
of it there, and the correction asks the quantized expert to compute what the float expert would
have. Routing weights do not enter: each token of T_e counts once.

What the experts read is kept for all tokens; of what is between their matrices, and of statistics,
no more than those of one expert are in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from normtweak_core.distributed.ranks import ALONE, Ranks
from normtweak_core.experts.stacked import DOWN, GATE, UP, between
from normtweak_core.quantization.config import ExpertsConfig
from normtweak_core.quantization.hessian import InputStatistics
from normtweak_core.quantization.report import ExpertReport

TOKENS_AT_ONCE = 4096  # of one expert: bounds memory, and fixes the order of sums
Routed = tuple[Tensor, Tensor]  # what a mixture reads, and which experts each token goes to


@dataclass(frozen=True)
class RoutedInputs:
    """What the experts of a mixture read of all calibration tokens, and which of them read it."""

    x_q: Float[Tensor, "tokens hidden"]
    chosen: Int[Tensor, "tokens k"]  # experts of each token in the quantized stream
    x_f: Float[Tensor, "tokens hidden"] | None = None  # None: nothing is propagated
    # Share of these choices that the router of the float stream makes for the token too.
    alike: float | None = None

    @classmethod
    def of(
        cls, ours: Iterator[Routed], wanted: Iterator[Routed] | None, ranks: Ranks = ALONE
    ) -> "RoutedInputs | None":
        """Return what was caught in front of a mixture, on the CPU; None: another process has it.

        Args:
            ours: Of the quantized stream, by micro-batch.
            wanted: Of the float stream; None: nothing is propagated.
            ranks: Who else has caught some of it.
        """
        found = _joined(ours, ranks)
        float_found = None if wanted is None else _joined(wanted, ranks)
        if found is None:
            return None
        x_q, chosen = found
        if float_found is None:
            return cls(x_q, chosen)
        x_f, in_float = float_found
        alike = (chosen[:, :, None] == in_float[:, None]).any(dim=-1)
        return cls(x_q, chosen, x_f, alike.double().mean().item())

    def tokens_of(self, expert: int) -> Int[Tensor, " routed"]:
        """Return the indices of the tokens that an expert gets."""
        return (self.chosen == expert).any(dim=-1).nonzero().flatten()


def expert_statistics(
    theirs: nn.Module, ours: nn.Module, mixture: str, inputs: RoutedInputs, rule: ExpertsConfig
) -> Iterator[tuple[list[str], InputStatistics | None, ExpertReport]]:
    """Yield the linears of each expert that read the same tensor, and statistics of what they read.

    Each group has to be quantized, in ``ours``, before the next one is asked for.

    Args:
        theirs: The experts in the float block.
        ours: The same in the quantized one, on their way.
        mixture: Their name in the block.
        inputs: What they read.
        rule: What is done about experts with few tokens.

    Yields:
        Names of the linears; their statistics, None where they are to be rounded to nearest; and
        what is told of the expert.
    """
    width = inputs.x_q.shape[1]
    for expert in range(len(theirs.down_proj)):
        tokens = inputs.tokens_of(expert)
        few = len(tokens) < rule.min_tokens * width
        name = f"{mixture}.{expert}"
        source = rule.few_tokens if few else "routed tokens"
        report = ExpertReport(expert=name, tokens=len(tokens), statistics=source)
        if source == "all tokens":
            tokens = torch.arange(len(inputs.chosen))
        parts = [] if source == "none" else list(tokens.split(TOKENS_AT_ONCE))
        pairs = partial(_pairs, inputs, parts, theirs.down_proj.device)
        yield [f"{name}.{GATE}", f"{name}.{UP}"], _gathered(pairs()), report
        inner = (
            (between(ours, expert, x), None if f is None else between(theirs, expert, f))
            for x, f in pairs()
        )
        yield [f"{name}.{DOWN}"], _gathered(inner), report


Pair = tuple[Tensor, Tensor | None]  # of the quantized and of the float stream


def _pairs(inputs: RoutedInputs, parts: list[Tensor], device: torch.device) -> Iterator[Pair]:
    """Yield what the streams hold of some tokens, part by part."""
    for part in parts:
        wanted = None if inputs.x_f is None else inputs.x_f[part].to(device)
        yield inputs.x_q[part].to(device), wanted


def _gathered(pairs: Iterator[Pair]) -> InputStatistics | None:
    """Return the statistics of such pairs; None of none."""
    statistics = None
    for ours, wanted in pairs:
        statistics = statistics or InputStatistics(ours.shape[1], ours.device)
        statistics.add_both(ours, wanted)
    return statistics


def _joined(batches: Iterator[Routed], ranks: Ranks) -> Routed | None:
    """Return the tokens of all micro-batches in one, on the CPU, to the first process."""
    kept = [one.flatten(0, -2).cpu() for batch in batches for one in batch]
    kept = [one for sent in ranks.collected(kept) for one in sent]
    if not kept:
        return None
    return torch.cat(kept[::2]), torch.cat(kept[1::2])
