"""Train one quantized block so that its output resembles the float block's.

The reconstruction of EfficientQAT's Block-AP (arXiv 2407.11062), on two streams as everywhere here:
the block reads what the quantized model sees, and its target is what the float model says.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import BaseModel
from torch import Tensor, nn

from normtweak_core.errors import NonFiniteError
from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.finetune.model import peak_rates, trained_state
from normtweak_core.quantization.drift import token_distance
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.streams import Streams, run_stream
from normtweak_core.training.arithmetic import arithmetic
from normtweak_core.training.order import window_order
from normtweak_core.training.rates import BETAS, Rates


class BlockTraining(BaseModel, frozen=True):
    """What training one block has brought, on windows that it has not seen."""

    block: int
    steps: int
    distance_before: float  # root mean square over tokens of |output - target| / |target|
    distance_after: float
    accepted: bool


@dataclass
class FinetunedBlock:
    """A block after its training; parameter names are relative to the block."""

    state: dict[str, Tensor]  # what is trained, on the CPU
    report: BlockTraining
    streams: Streams  # its output


def finetune_block(
    block: nn.Module,
    on_grids: nn.Module,
    streams: Streams,
    run: RunBlock,
    config: FinetuneConfig,
    seed: int,
    index: int,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> FinetunedBlock:
    """Return the trained block; one that did not come nearer to its target stays as it was.

    Args:
        block: The float block, in float32.
        on_grids: Its copy with quantized linears, see `put_on_grids`; trained in place.
        streams: What the float and the quantized model see at its input.
        run: Runs a block on a micro-batch of windows.
        config: Steps, batch and rates.
        seed: Of the recipe.
        index: Number of the block.
        progress: Called after each step.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
    """
    x_f = run_stream(block, streams.x_f, run)
    start = trained_state(on_grids)
    before = _held_out(on_grids, streams, x_f, run)
    _train(on_grids, streams, x_f, run, config, (seed, index), progress)
    after = _held_out(on_grids, streams, x_f, run)
    accepted = after < before
    if not accepted:
        on_grids.load_state_dict(start, strict=False)
    report = BlockTraining(
        block=index,
        steps=config.block_steps,
        distance_before=before,
        distance_after=after,
        accepted=accepted,
    )
    x_q = run_stream(on_grids, streams.x_q, run)
    return FinetunedBlock(trained_state(on_grids), report, Streams(x_f, x_q))


def _train(
    on_grids: nn.Module,
    streams: Streams,
    x_f: Float[Tensor, "samples seq hidden"],
    run: RunBlock,
    config: FinetuneConfig,
    source: tuple[int, int],
    progress: Callable[[int, int], None],
) -> None:
    parameters = {n: p for n, p in on_grids.named_parameters() if p.requires_grad}
    peaks = peak_rates(on_grids, config)
    groups = [{"params": [p], "lr": peaks[n], "peak": peaks[n]} for n, p in parameters.items()]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=True)
    shape = Rates(config.block_steps, 1.0)
    (seed, index), device = source, next(on_grids.parameters()).device
    for step in range(config.block_steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * shape.lr_at(step)
        order = window_order(streams.num_training, config.batch, seed, step, f"block {index}")
        with torch.enable_grad():
            with arithmetic(config.dtype, device):
                output = run(on_grids, streams.x_q[order])
            loss = token_distance(output.float(), x_f[order])
            if not torch.isfinite(loss):
                raise NonFiniteError(
                    f"the loss of block {index} must be finite; found {loss.item()} at step "
                    f"{step}: lower finetune.lr (now {config.lr:g}) or scale_lr"
                )
            optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip)
        optimizer.step()
        progress(step + 1, config.block_steps)


@torch.no_grad()
def _held_out(on_grids: nn.Module, streams: Streams, x_f: Tensor, run: RunBlock) -> float:
    held_out = range(streams.num_training, len(x_f))
    total = sum(
        token_distance(run(on_grids, streams.x_q[i : i + 1]), x_f[i : i + 1]).item()
        for i in held_out
    )
    return (total / len(held_out)) ** 0.5
