"""Seconds of a quantization by stage, from what was tried on one block of the model."""

import math
from typing import TYPE_CHECKING

from flows.checks.machine import ModelShape, num_groups
from flows.recipes.quantize import Recipe
from normtweak_core.lazy import lazy
from normtweak_core.quantization.config import MixedBits
from normtweak_core.widths.budget import MEASURED_TOKENS

if TYPE_CHECKING:
    from normtweak_core.forecast.trial import Costs

streams = lazy("normtweak_core.quantization.streams")

PROBED = 6 * 64  # tokens of a float type's trial, and of an export's
SHARES = 5  # times that they judge a norm tweak, once before it
LOOKS = 8  # that a block training takes at its held-out windows, as normtweak_core.finetune.block
WRITTEN = 32  # tokens of a sample at most, and of its prompt
KEPT_WEIGHTS = 1 << 25  # of float blocks that stay in memory while samples are written
# Processes that start, server, registry: the same for 40 and 220 million parameters (make ladder).
STARTED = 22.0
READER = 7.0  # what the verifying reader imports, its start, and questions to a tokenizer


def quantize_seconds(
    recipe: Recipe, shape: ModelShape, length: int, costs: "Costs", at_once: int | None
) -> dict[str, float]:
    """Return seconds by stage.

    Args:
        recipe: Of a quantization.
        shape: Sizes of its model.
        length: Tokens of a window.
        costs: As `normtweak_core.forecast.trial.tried` found them.
        at_once: Windows that are written at once; None: the text is given.
    """
    blocks, samples = shape.num_blocks, recipe.calibration.samples
    tokens = samples * length
    walk = blocks * (costs.load + tokens * costs.forward)
    probe = blocks * (2 * costs.load + PROBED * (costs.forward + costs.half))
    found = {
        "calibrate": costs.opened
        + _writing(samples, length, blocks, costs, at_once)
        + walk
        + tokens * costs.head,
        "float type": 3 * costs.opened + probe + 2 * PROBED * costs.head,
        "blocks": costs.opened + blocks * _block(recipe, samples, length, costs),
        "baseline": costs.opened
        + blocks * (costs.load + costs.rounding + tokens * _streams(costs)),
        "export": 3 * costs.opened + probe + blocks * 2 * costs.load + 2 * PROBED * costs.head,
        "evaluate": _evaluating(recipe, shape, length, costs),
        # The reader loads, unpacks, runs and hashes in the float type of the export.
        "verify": READER
        + 2 * costs.opened
        + blocks * (2 * costs.load + PROBED * costs.half)
        + PROBED * costs.head,
        "start, register": STARTED,
    }
    if isinstance(recipe.quantization.bits, MixedBits):
        found["trial"], found["sensitivity"] = _widths(recipe, shape, length, costs)
    if recipe.final_tune.enabled:
        each = length * (blocks * costs.step + costs.head_step)
        held_out = 2 * _held_out(samples) * length
        judged = held_out * (blocks * costs.forward + 2 * costs.head)
        found["final tune"] = 2 * costs.opened + 3 * walk + recipe.final_tune.steps * each + judged
    return found


def _streams(costs: "Costs") -> float:
    """Return the seconds in which a token of both streams passes through a block."""
    return 2 * costs.forward + costs.drift


def _held_out(samples: int) -> int:
    return samples - streams.num_training_windows(samples)


def _block(recipe: Recipe, samples: int, length: int, costs: "Costs") -> float:
    config, tweak, tokens = recipe.quantization, recipe.norm_tweak, samples * length
    informed = config.method == "gptq" or config.propagation.alpha > 0
    seconds = costs.load + tokens * (_streams(costs) + informed * costs.statistics)
    seconds += costs.solve if config.method == "gptq" else costs.rounding
    if tweak.enabled:
        held_out = _held_out(samples)
        seconds += tweak.iterations * (samples - held_out) * length * costs.step
        seconds += SHARES * held_out * length * costs.forward
        seconds += tokens * (costs.forward + costs.drift)
    training = recipe.block_training
    if training.enabled:
        # Weights are rounded anew and have gradients too, which a step of norms has not.
        seconds += training.steps * training.batch * length * (costs.step + costs.forward)
        seconds += (LOOKS + 1) * _held_out(samples) * length * costs.forward
        seconds += tokens * (costs.forward + costs.drift)
    return seconds


def _widths(recipe: Recipe, shape: ModelShape, length: int, costs: "Costs") -> tuple[float, float]:
    """Return the seconds of solving each block at each width, and of every trial to the logits."""
    blocks, samples = shape.num_blocks, recipe.calibration.samples
    widths = recipe.quantization.widths
    solved = costs.load + samples * length * (costs.forward + costs.statistics)
    solved += len(widths) * costs.solve
    measured = min(_held_out(samples), max(1, MEASURED_TOKENS // length)) * length
    trials = (len(widths) - 1) * num_groups(shape)
    passes = (blocks + 1) / 2 * (trials * measured * costs.forward + blocks * costs.load)
    ends = trials * measured * (costs.head + costs.compared)
    return costs.opened + blocks * solved, costs.opened + passes + ends


def _writing(samples: int, length: int, blocks: int, costs: "Costs", at_once: int | None) -> float:
    if at_once is None:
        return 0.0
    steps = math.ceil(samples / at_once) * length
    return steps * at_once * (blocks * costs.written + costs.head)


def _evaluating(recipe: Recipe, shape: ModelShape, length: int, costs: "Costs") -> float:
    """Return the seconds of three models on a text, and of the samples that two of them write."""
    config, blocks = recipe.evaluation.perplexity, shape.num_blocks
    tokens, window = config.max_tokens or 100_000, config.length or length
    each = tokens * (2 * costs.forward + costs.half) + 3 * costs.load
    logits = tokens * (3 * costs.head + 2 * costs.compared)
    written = min(WRITTEN, window // 2)
    read = max(0, blocks - KEPT_WEIGHTS // max(1, shape.linear_weights // blocks))
    samples = 2 * written * (read * costs.load + blocks * 3 * 1.5 * written * costs.forward)
    # Every new token asks for the logits of all before it.
    samples += 2 * 3 * 1.5 * written**2 * costs.head
    return 3 * costs.opened + blocks * each + logits + samples
