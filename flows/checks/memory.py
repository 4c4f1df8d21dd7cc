"""What a run will hold in memory: anonymous pages of its process at the peak of each stage.

Pages of weight files that are mapped are not counted: the kernel takes them back when it needs
them. Each stage lets go of what it held.
"""

from collections import Counter
from typing import Any

from flows.checks.machine import FIXED_OF_A_PROCESS, ModelShape, num_groups, processes
from flows.recipes.quantize import Recipe
from normtweak_core.forecast.memory import solving_bytes
from normtweak_core.memory import KEPT, WHOLE, available_memory, hard_limit
from normtweak_core.model.source import resolve_device
from normtweak_core.quantization.config import MixedBits
from normtweak_core.widths.budget import MEASURED_TOKENS

MIB = 1 << 20
FIXED_MEMORY = 560 * MIB  # measured (make ladder): everything imported, engine and registry at work
TOKENS_PER_MICRO_BATCH = 4096  # as normtweak_core.quantization.streams, which imports torch
# What a linear keeps for a backward pass: input and output as they are, normed, and rounded.
KEPT_OF_A_LINEAR = 4
# In float32 itself, its gradient, two moments and the best so far; its level and what is clipped.
OF_A_TRAINED_WEIGHT = 30
WALKED = 3  # models of an evaluation: the float one, the export as it is read, and in float32
KEPT_BLOCKS = 1 << 27  # as normtweak_core.model.streaming keeps of each, which imports torch
KEPT_WEIGHT = 1 << 26  # as normtweak_core.on_demand
# Bytes that a process asks for beside what it holds: stacks of threads, reserves of the allocator.
RESERVED = 192 << 20
PIECES = 256 * MIB  # of logits that are compared, with what is made of them
JUDGED = 256 * MIB  # as normtweak_core.calibration.quality takes at once
PROBED = 6 * 64  # tokens of the trial of a float type, and of the probe of an export
COPIES = 4  # of their logits: in float32 and the type that is tried, and what is made of both


def memory_bytes(recipe: Recipe, shape: ModelShape, length: int) -> dict[str, int]:
    """Return an estimate of the peak memory by stage; stages follow each other."""
    element = shape.element(recipe.model.dtype)
    tokens = recipe.calibration.samples * length
    stream = tokens * shape.hidden * element
    block = shape.linear_weights // max(1, shape.num_blocks) * element
    held = FIXED_MEMORY + _held(shape, element)
    outside = (shape.parameters - shape.linear_weights) * element
    opened = FIXED_MEMORY + outside
    logits = COPIES * PROBED * shape.vocabulary * 4
    model = shape.parameters * element
    # Of one window: what a backward pass keeps, and its logits from both models.
    step = length * (KEPT_OF_A_LINEAR * shape.linear_sides + 6 * shape.vocabulary) * 4
    codes = shape.linear_weights if recipe.final_tune.scales else 0  # beside what they are of
    tuned = {"final tune": FIXED_MEMORY + model + codes + stream + step}
    row = 3 * length * shape.vocabulary * 4
    judged = min(max(JUDGED, row), tokens * shape.vocabulary * 4) + row
    solved = max(solving(shape, tokens), step // max(1, shape.num_blocks))
    # Of each further process; on GPUs all but the first of these numbers is there.
    others = (processes(recipe) - 1) * (FIXED_OF_A_PROCESS + outside + 3 * block + solved)
    if recipe.calibration.source == "generated":
        calibrated = FIXED_MEMORY + whole_bytes(recipe, shape) + judged
    else:
        # The block at hand is gone when logits are judged.
        walk = held + stream + _kept(shape, block)
        calibrated = max(opened, walk + max(block, judged + _at_work(shape, element)))
    return {
        "start": max(opened, held + _at_work(shape, element) + block),
        "calibrate": calibrated,
        "float type": max(opened, held + max(2 * block, logits + _at_work(shape, 4))),
        **_widths(recipe, shape, stream, block, solved, held),
        "blocks": max(
            opened, held + 5 * stream + 2 * block + max(solved, _training(recipe, shape, length))
        )
        + others,
        **(tuned if recipe.final_tune.enabled else {}),
        "export": max(opened, held + 2 * block + logits + _at_work(shape, 4)),
        **evaluation_memory(recipe, shape),
    }


def _widths(
    recipe: Recipe, shape: ModelShape, stream: int, block: int, solved: int, held: int
) -> dict[str, int]:
    """Return what it takes to solve a block at all widths, and the windows of each trial."""
    config = recipe.quantization
    if not isinstance(config.bits, MixedBits):
        return {}
    codes = len(config.widths) * shape.linear_weights // max(1, shape.num_blocks)
    trials = len(config.widths) * num_groups(shape) // max(1, shape.num_blocks)
    tried = trials * min(stream, MEASURED_TOKENS * shape.hidden * 4)
    kept = _kept(shape, block) + PIECES + _at_work(shape, 4)
    return {
        "trial": held + 2 * stream + 2 * block + codes + solved,
        "sensitivity": held + 2 * block + codes + tried + kept,
    }


def _training(recipe: Recipe, shape: ModelShape, length: int) -> int:
    """Return what training a block takes beside the block; nothing where none is trained."""
    if not recipe.block_training.enabled:
        return 0
    weights, sides = (
        whole // max(1, shape.num_blocks) for whole in (shape.linear_weights, shape.linear_sides)
    )
    kept = recipe.block_training.batch * length * KEPT_OF_A_LINEAR * sides * 4
    return OF_A_TRAINED_WEIGHT * weights + kept


def evaluation_memory(recipe: Any, shape: ModelShape) -> dict[str, int]:
    """Return an estimate of the peak memory of measuring an export beside its float model.

    Args:
        recipe: Of any kind that measures.
        shape: Sizes of the float model.
    """
    config = recipe.evaluation
    tokens = config.perplexity.max_tokens or 100_000
    block = shape.linear_weights // max(1, shape.num_blocks) * 4
    states = tokens * shape.hidden * 4
    kept = min(KEPT_BLOCKS, shape.linear_weights * 4)  # those of the export are half as large
    walked = FIXED_MEMORY + WALKED * (states + _held(shape, 4)) + kept + 2 * block
    whole = whole_bytes(recipe, shape)
    answers = 3 * TOKENS_PER_MICRO_BATCH * shape.vocabulary * 4
    tasks = {"evaluate tasks": FIXED_MEMORY + whole + answers}
    compared = walked + PIECES + _at_work(shape, 4)
    return {"evaluate": compared} | (tasks if config.tasks else {})


def solving(shape: ModelShape, tokens: int) -> int:
    """Return what solving takes; linears of one module that are equally wide may read the same."""
    together = Counter[tuple[str, int]]()
    for name, one in shape.linears.items():
        together[name.rpartition(".")[0], one.in_features] += one.out_features
    sums = -(-tokens // TOKENS_PER_MICRO_BATCH)
    return solving_bytes(((rows, width) for (_, width), rows in together.items()), sums)


def whole_bytes(recipe: Any, shape: ModelShape, beside: int = 0) -> int:
    """Return what a whole model holds: all of it, or what fits where it is spread.

    Args:
        recipe: Says what it computes in, and where.
        shape: Its sizes.
        beside: Bytes that will be taken beside it.
    """
    element = shape.element(recipe.model.dtype)
    size = shape.parameters * element
    room = room_of(recipe) - FIXED_MEMORY - beside
    if size <= WHOLE * room:
        return size
    ends = (shape.parameters - shape.linear_weights) * element
    block = shape.linear_weights // max(1, shape.num_blocks) * element
    kept = max(0, int(KEPT * room))
    # Small parts are rounded up to blocks; large embeddings and heads are read when they run.
    return min(size, kept) + block + (0 if 2 * ends <= kept else _at_work(shape, element))


def room_of(recipe: Any) -> int:
    """Return the bytes that a run may hold where it computes."""
    device = resolve_device(recipe.model.device)
    if device != "cpu":
        return FIXED_MEMORY + available_memory(device)
    hard = hard_limit()
    most = [available_memory(device)]
    most += [] if recipe.limits.memory is None else [recipe.limits.memory]
    return min(most + ([] if hard is None else [hard - RESERVED]))


def _kept(shape: ModelShape, block: int) -> int:
    """Return what the first blocks of a walked model take: as many as stay in memory."""
    return min(shape.num_blocks, KEPT_BLOCKS // max(1, block)) * block


def _held(shape: ModelShape, element: int) -> int:
    """Return what an open model holds outside its blocks: embedding and head if they are small.

    Large ones are there while it is opened, and each while it runs.
    """
    each = shape.vocabulary * shape.hidden * element
    return 0 if each > KEPT_WEIGHT else (shape.parameters - shape.linear_weights) * element


def _at_work(shape: ModelShape, element: int) -> int:
    """Return what the head takes beside what an open model holds while it runs."""
    each = shape.vocabulary * shape.hidden * element
    return each + each // 2 if each > KEPT_WEIGHT else 0
