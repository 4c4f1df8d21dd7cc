"""Everything that can be known to be wrong before a server starts or a folder is made.

Nothing here imports torch (but where a GPU build of it has to count devices), Prefect or MLflow,
and nothing is written.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flows.checks.finetune import require_same_model, start_of
from flows.checks.inputs import Ready, check_inputs, check_machine
from flows.checks.limits import check_disk_limit, check_memory
from flows.checks.machine import ModelShape, disk_bytes, processes
from flows.checks.memory import memory_bytes
from flows.checks.remaining import shares_there
from flows.checks.training import (
    finetune_disk,
    finetune_memory,
    num_sharing,
    ternary_disk,
    ternary_memory,
)
from flows.recipes.kinds import FINETUNE, QUANTIZE, TERNARY, kind_of
from normtweak_core.export.foreign.source import read_base, require_made_of, require_order
from normtweak_core.export.formats.checks import (
    GPTQ_READER_DONE,
    check_exportable,
    check_ternary_exportable,
    refuse_experts,
)
from normtweak_core.export.gguf.grid_checks import check_grid_exportable
from normtweak_core.export.gguf.ternary_checks import check_gguf_exportable
from normtweak_core.model.architecture import read_config
from normtweak_core.quantization.config import MixedBits
from normtweak_core.vision.kinds import check_image_recipe, refuse_images
from tasks.engine.environment import REPOSITORY


@dataclass(frozen=True)
class OwnChecks:
    """What is looked at for one kind of recipe alone."""

    fits: Callable[[Any, Ready], None]  # whether its format can hold the model
    disk: Callable[[Any, ModelShape, int], dict[str, int]]  # bytes that a run writes at most
    memory: Callable[[Any, ModelShape, int], dict[str, int]]  # bytes at the peak of each stage
    start: Callable[[Any, Path], dict[str, Any]] = lambda recipe, root: {}  # fields of `Ready`


def preflight(recipe: Any, root: Path, result: Path | None = None, evaluates: bool = True) -> Ready:
    """Accept a recipe that this machine can carry out, in order of rising cost.

    Args:
        recipe: Of quantize, ternary or finetune.
        root: The state root; it need not exist yet.
        result: Where the result file shall go, if anywhere.
        evaluates: Whether the text to measure on is needed.

    Raises:
        InputError: A folder cannot be written, the model or export is not there, not the right one
            or unsuitable, a text is missing, empty or malformed, the format cannot hold the model,
            as many processes as asked for cannot share the training,
            the disk is too small, or a stage does not keep within the limits.
    """
    kind = kind_of(recipe.model_dump())
    own = OWN[kind.name]
    start = own.start(recipe, root)
    model, data = start.get("float_model", recipe.model), kind.data_of(recipe)
    measured = recipe.evaluation if evaluates else None
    ready = replace(check_inputs(model, data, measured, root, result, kind.data), **start)
    recipe = recipe if ready.base is None else ready.base.gridded(recipe)
    own.fits(recipe, ready)
    disk = own.disk(recipe, ready.shape, ready.length)
    check_disk_limit(recipe, disk)
    needs = partial(own.memory, shape=ready.shape, length=ready.length)
    check_memory(recipe, kind.name, kind.data, needs)
    there = shares_there(recipe, ready, root)
    ready = check_machine(ready, disk, recipe.model, root, there)
    # As many GPUs as it asks for, and of a training as many as divide its batch.
    (processes if kind is QUANTIZE else num_sharing)(recipe)
    return ready


def _fits(recipe: Any, ready: Ready) -> None:
    model = read_config(ready.source.path)
    if ready.export is not None:
        refuse_experts(ready.shape.linears, "fine-tuning")
        refuse_images(model, "fine-tuning")
    elif recipe.block_training.enabled:
        refuse_experts(ready.shape.linears, "block_training")
    config = recipe.quantization if ready.export is None else ready.export.quantization
    if ready.base is not None:
        refuse_images(model, "base")
        require_made_of(ready.base, ready.source.path, ready.shape.linears)
        require_order(recipe.export, ready.base)
    reader = (REPOSITORY / GPTQ_READER_DONE).is_file()
    if ready.export is None:
        mixed = isinstance(config.bits, MixedBits)
        check_image_recipe(recipe.calibration.images, mixed, model)
    check_exportable(recipe.export, config, ready.shape.linears, reader_available=reader)
    check_grid_exportable(recipe.export, config, model, ready.shape.linears)
    if ready.export is not None:
        require_same_model(ready.export, ready.source.path)


def _ternary_fits(recipe: Any, ready: Ready) -> None:
    model = read_config(ready.source.path)
    refuse_images(model, "ternary training")
    check_ternary_exportable(recipe.export, ready.shape.linears)
    if recipe.export.format == "gguf":
        check_gguf_exportable(model, ready.shape.linears)


def _base_of(recipe: Any, root: Path) -> dict[str, Any]:
    return {} if recipe.base is None else {"base": read_base(recipe.base)}


OWN = {
    QUANTIZE.name: OwnChecks(_fits, disk_bytes, memory_bytes, _base_of),
    TERNARY.name: OwnChecks(
        _ternary_fits,
        ternary_disk,
        ternary_memory,
    ),
    FINETUNE.name: OwnChecks(_fits, finetune_disk, finetune_memory, start_of),
}
