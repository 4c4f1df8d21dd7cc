"""What a training will need, predicted as `flows.checks.machine` predicts a quantization."""

from flows.checks.machine import (
    FIXED_DISK,
    FIXED_OF_A_PROCESS,
    ModelShape,
    processes,
)
from flows.checks.memory import FIXED_MEMORY, KEPT_OF_A_LINEAR, evaluation_memory, whole_bytes
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.model.source import resolve_device
from normtweak_core.ternary.config import START_WINDOWS, TernaryConfig
from normtweak_core.training.batches import shared_by

FORWARD_AND_BACKWARD = 3  # a backward pass has two products for each of the forward one
LOGITS = 3  # copies at once
GROUPS = 4  # of a block's linears, by what they read; passes of the start begin again at each


def num_sharing(recipe: TernaryRecipe | FinetuneRecipe) -> int:
    """Return how many processes share the training of a recipe.

    Raises:
        InputError: There are not as many GPUs, or the number does not divide the batch.
    """
    config = recipe.ternary if isinstance(recipe, TernaryRecipe) else recipe.finetune
    return shared_by(recipe.devices, processes(recipe), config.batch, config.accumulate)


def ternary_disk(recipe: TernaryRecipe, shape: ModelShape, length: int) -> dict[str, int]:
    """Return the bytes a run writes at most, by what they are."""
    export = shape.linear_weights // 4 + (shape.parameters - shape.linear_weights) * 4
    return {
        "data": recipe.ternary.data.samples * length * 16,
        # Weights and two moments in float32; two checkpoints, and a third while it is written.
        "checkpoints": 3 * 12 * shape.parameters,
        "trained weights": shape.parameters * 4,
        "export, and the registry's copy": 2 * export,
        "databases, logs and reports": FIXED_DISK,
    }


def finetune_disk(recipe: FinetuneRecipe, shape: ModelShape, length: int) -> dict[str, int]:
    """Return the bytes a run writes at most, by what they are."""
    export = shape.linear_weights + (shape.parameters - shape.linear_weights) * 4
    return {
        "data": recipe.finetune.data.samples * length * 16,
        "trained blocks": shape.linear_weights * 5 if recipe.finetune.block_steps else 0,
        # Weights and two moments in float32; two checkpoints, and a third while it is written.
        "checkpoints": 3 * 15 * shape.linear_weights,
        "trained weights": shape.linear_weights * 5,
        "exports, and the registry's copy": 3 * export,
        "databases, logs and reports": FIXED_DISK,
    }


def ternary_memory(recipe: TernaryRecipe, shape: ModelShape, length: int) -> dict[str, int]:
    """Return an estimate of the peak memory by stage; stages follow each other."""
    config = recipe.ternary
    trained = 5 * 4 * shape.parameters  # weight, gradient, two moments, the best weight so far
    teacher = _teacher(recipe, shape, trained) if config.objective != "ce" else 0
    return {
        "surgery": FIXED_MEMORY + 2 * shape.parameters * 4,
        **_start_memory(config, shape, length),
        "training": _training_memory(recipe, shape, length, trained + teacher, config),
        **evaluation_memory(recipe, shape),
    }


def _start_memory(config: TernaryConfig, shape: ModelShape, length: int) -> dict[str, int]:
    """Return what the start from GPTQ takes, where a training starts there."""
    if config.start != "gptq":
        return {}
    streams = 4 * _start_tokens(config, length) * shape.hidden * 4
    solving = 4 * shape.widest_input**2 * 4 + 6 * shape.linear_weights // shape.num_blocks * 4
    return {"gptq start": FIXED_MEMORY + shape.parameters * 4 + streams + solving}


def _start_tokens(config: TernaryConfig, length: int) -> int:
    """Return the tokens whose statistics the start comes from."""
    return min(START_WINDOWS, config.data.samples) * length


def finetune_memory(recipe: FinetuneRecipe, shape: ModelShape, length: int) -> dict[str, int]:
    """Return an estimate of the peak memory by stage; stages follow each other."""
    config = recipe.finetune
    stream = config.data.samples * length * shape.hidden * 4
    block = 4 * 4 * shape.linear_weights // shape.num_blocks
    # Weights of all; gradient, two moments and the best weight so far of the linears.
    trained = 4 * shape.parameters + 4 * 4 * shape.linear_weights
    held = trained + _teacher(recipe, shape, trained)
    stages = {
        "training": _training_memory(recipe, shape, length, held, config),
        **evaluation_memory(recipe, shape),
    }
    return {"blocks": FIXED_MEMORY + 5 * stream + block} | stages if config.block_steps else stages


def _teacher(recipe: TernaryRecipe | FinetuneRecipe, shape: ModelShape, trained: int) -> int:
    """Return what the float model holds beside a training; several processes share it."""
    if num_sharing(recipe) > 1:
        return shape.parameters * shape.element(recipe.model.dtype)
    return whole_bytes(recipe, shape, trained)


def _training_memory(
    recipe: TernaryRecipe | FinetuneRecipe,
    shape: ModelShape,
    length: int,
    held: int,
    config: TernaryConfig | FinetuneConfig,
) -> int:
    """Return the bytes of a training: of all its processes, but on GPUs of one of them.

    Args:
        recipe: What is trained.
        shape: Of the model.
        length: Tokens per window.
        held: Bytes of both models and of the optimizer, of which each process has its share.
        config: Section of the training.
    """
    count = num_sharing(recipe)
    kept = _kept(shape, config.batch // (count * config.accumulate) * length, config)
    if count == 1:
        return FIXED_MEMORY + held + kept
    if resolve_device(recipe.model.device) != "cpu":
        return FIXED_MEMORY + held // count + kept
    # Each loads both models whole before it keeps its share.
    loaded = count * (4 + shape.element(recipe.model.dtype)) * shape.parameters
    return FIXED_MEMORY + count * FIXED_OF_A_PROCESS + max(held + count * kept, loaded)


def ternary_work(recipe: TernaryRecipe, shape: ModelShape, length: int) -> dict[str, int]:
    """Return multiply-adds by stage."""
    config = recipe.ternary
    passes = FORWARD_AND_BACKWARD + (config.objective != "ce") + config.gradient_checkpointing
    tokens = config.steps * config.batch * length
    return {
        "data": data_work(config.data.source, config.data.samples * length, shape),
        "gptq start": _start_work(config, shape, length) if config.start == "gptq" else 0,
        "training": passes * tokens * shape.parameters,
        "evaluate": evaluation_work(recipe.evaluation.perplexity.max_tokens, 2, shape),
    }


def _start_work(config: TernaryConfig, shape: ModelShape, length: int) -> int:
    """Return the multiply-adds of the start: passes that begin again at each group, and sums."""
    passes = 2 * GROUPS * shape.linear_weights
    sums = sum(
        one.in_features * (one.in_features // 2 + 2 * one.out_features)
        for one in shape.linears.values()
    )
    return _start_tokens(config, length) * (passes + sums)


def finetune_work(recipe: FinetuneRecipe, shape: ModelShape, length: int) -> dict[str, int]:
    """Return multiply-adds by stage."""
    config = recipe.finetune
    step = config.batch * length
    whole = FORWARD_AND_BACKWARD + 1 + config.gradient_checkpointing
    streams = 4 * config.data.samples * length  # both, in and out
    blocks = (FORWARD_AND_BACKWARD * config.block_steps * step + streams) * shape.linear_weights
    return {
        "data": data_work(config.data.source, config.data.samples * length, shape),
        "blocks": blocks if config.block_steps else 0,
        "training": whole * config.steps * step * shape.parameters,
        "evaluate": evaluation_work(recipe.evaluation.perplexity.max_tokens, 3, shape),
    }


def data_work(source: str, tokens: int, shape: ModelShape) -> int:
    """Return the multiply-adds of writing a text, or of its likelihood alone."""
    return tokens * shape.parameters * (4 if source == "generated" else 2)


def evaluation_work(max_tokens: int | None, models: int, shape: ModelShape) -> int:
    """Return the multiply-adds of measuring some models beside their float model."""
    return (2 * models - 1) * (max_tokens or 100_000) * shape.parameters


def _kept(shape: ModelShape, tokens: int, config: TernaryConfig | FinetuneConfig) -> int:
    """Return what a backward pass needs: of all blocks, or of one and the input of every other."""
    activations = KEPT_OF_A_LINEAR * tokens * shape.linear_sides * 4
    if config.gradient_checkpointing:
        activations = activations // shape.num_blocks + shape.num_blocks * tokens * shape.hidden * 4
    return activations + _logits(shape, tokens)


def _logits(shape: ModelShape, tokens: int) -> int:
    return LOGITS * tokens * shape.vocabulary * 4
