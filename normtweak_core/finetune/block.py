"""Train one quantized block so that its output resembles the float block's.

The reconstruction of EfficientQAT's Block-AP (arXiv 2407.11062), on two streams as everywhere here:
the block reads what the quantized model sees, and its target is what the float model says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.errors import NonFiniteError
from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.finetune.model import load_trained, peak_rates, trained_state
from normtweak_core.finetune.report import BlockTraining
from normtweak_core.quantization.drift import token_distance
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.streams import Streams, num_training_windows, run_stream
from normtweak_core.training.arithmetic import arithmetic
from normtweak_core.training.order import window_order
from normtweak_core.training.rates import BETAS, Rates

LOOKS = 8  # at held-out windows during a training


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
    report = train_on_grids(on_grids, streams.x_q, x_f, run, config, seed, index, progress)
    x_q = run_stream(on_grids, streams.x_q, run)
    return FinetunedBlock(trained_state(on_grids), report, Streams(x_f, x_q))


def train_on_grids(
    on_grids: nn.Module,
    x_q: Float[Tensor, "samples seq hidden"],
    x_f: Float[Tensor, "samples seq hidden"],
    run: RunBlock,
    config: FinetuneConfig,
    seed: int,
    index: int,
    progress: Callable[[int, int], None] = lambda step, steps: None,
) -> BlockTraining:
    """Train a block in place and leave it as it was when it came nearest to its target.

    Looked at are held-out windows, `LOOKS` times, and before the first step: nothing is kept of a
    training that never came nearer.

    Args:
        on_grids: A block with quantized linears in float32, see `put_on_grids`.
        x_q: What the quantized model sees in front of it.
        x_f: What the float model says behind it.
        run: Runs a block on a micro-batch of windows.
        config: Steps, batch and rates.
        seed: Of the recipe.
        index: Number of the block.
        progress: Called after each step.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
    """
    num_training = num_training_windows(len(x_q))

    def held_out() -> float:
        return _held_out(on_grids, x_q[num_training:], x_f[num_training:], run)

    before = least = distance = held_out()
    best, kept = trained_state(on_grids), 0
    every = max(1, config.block_steps // LOOKS)
    for step in _steps(on_grids, x_q, x_f, run, config, (seed, index)):
        progress(step, config.block_steps)
        if step % every and step < config.block_steps:
            continue
        distance = held_out()
        if distance < least:
            best, least, kept = trained_state(on_grids), distance, step
    load_trained(on_grids, best)
    return BlockTraining(
        block=index,
        steps=config.block_steps,
        distance_before=before,
        distance_after=least if kept else distance,
        accepted=kept > 0,
        kept_step=kept,
    )


def _steps(
    on_grids: nn.Module,
    x_q: Tensor,
    x_f: Tensor,
    run: RunBlock,
    config: FinetuneConfig,
    source: tuple[int, int],
) -> Iterator[int]:
    """Yield the number of steps that are done, after each."""
    parameters = {n: p for n, p in on_grids.named_parameters() if p.requires_grad}
    peaks = peak_rates(on_grids, config)
    groups = [{"params": [p], "lr": peaks[n], "peak": peaks[n]} for n, p in parameters.items()]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=True)
    shape, num_training = Rates(config.block_steps, 1.0), num_training_windows(len(x_q))
    (seed, index), device = source, next(on_grids.parameters()).device
    for step in range(config.block_steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * shape.lr_at(step)
        order = window_order(num_training, config.batch, seed, step, f"block {index}")
        with torch.enable_grad():
            with arithmetic(config.dtype, device):
                output = run(on_grids, x_q[order])
            loss = token_distance(output.float(), x_f[order])
            if not torch.isfinite(loss):
                raise NonFiniteError(
                    f"the loss of block {index} must be finite; found {loss.item()} at step "
                    f"{step}: lower the learning rates (now {config.lr:g} and {config.scale_lr:g})"
                )
            optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip)
        optimizer.step()
        yield step + 1


@torch.no_grad()
def _held_out(on_grids: nn.Module, x_q: Tensor, x_f: Tensor, run: RunBlock) -> float:
    pairs = zip(x_q.split(1), x_f.split(1), strict=True)
    total = sum(token_distance(run(on_grids, given), wanted).item() for given, wanted in pairs)
    return (total / len(x_q)) ** 0.5
