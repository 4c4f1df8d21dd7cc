"""`normtweak plan`: disk, memory and time of a run, and which stages it would find finished."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.checks.forecast import STARTED, quantize_seconds
from flows.checks.inputs import Ready
from flows.checks.machine import (
    WHOLE,
    Writing,
    existing_folder,
    free_bytes,
    measured_speed,
    processes,
    time_estimate,
    writing,
)
from flows.checks.memory import FIXED_MEMORY, whole_bytes
from flows.checks.preflight import OWN, preflight
from flows.checks.training import finetune_work, num_sharing, ternary_work
from flows.commands.command import Command
from flows.commands.execution import print_line
from flows.commands.failures import EXIT_OK
from flows.commands.meant import add_recipe_or_model, meaning, meant_recipe
from flows.recipes.file import read_recipe
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.kinds import kind_of
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.errors import InputError
from normtweak_core.export.gguf.grid_checks import held_in_words
from normtweak_core.finetune.source import read_export_source
from normtweak_core.lazy import lazy
from normtweak_core.memory import available_memory, limited
from normtweak_core.model.hub import is_hub_id
from normtweak_core.model.source import with_dtype
from normtweak_core.paths import given_path
from normtweak_core.scratch import scratch_folder
from tasks.engine.environment import set_variables, state_root
from tasks.engine.progress import readable_bytes, readable_seconds
from tasks.models.export_folder import export_folder

jobs = lazy("tasks.models.job")
trials = lazy("normtweak_core.forecast.trial")

if TYPE_CHECKING:
    from flows.pipeline.declared import Finished


def run_plan(options: argparse.Namespace) -> int:
    """Print what a recipe would need; write nothing."""
    values, text = meant_recipe(options)
    recipe = kind_of(values).recipe.parse(values)
    with scratch_environment(state_root()):
        require_local_model(recipe, state_root())
        ready = preflight(recipe, state_root())
        lines = [*meaning(text), *plan_lines(recipe, ready, state_root())]
    for line in [*lines, *(f"warning {text}" for text in ready.warnings)]:
        print_line(line)
    return EXIT_OK


def plan_of(recipe: Path) -> dict[str, Any]:
    """Return the numbers of the plan of a recipe file: bytes of disk and memory, and seconds.

    Raises:
        InputError: As the command that would carry the recipe out.
    """
    values = read_recipe(recipe)
    parsed = kind_of(values).recipe.parse(values)
    with scratch_environment(state_root()):
        ready = preflight(parsed, state_root())
        plan = _plan(parsed, ready)
        return {
            "blocks": ready.shape.num_blocks,
            "parameters": ready.shape.parameters,
            "memory": plan.memory,
            "disk": ready.disk,
            "seconds": plan.seconds,
        }


@contextlib.contextmanager
def scratch_environment(root: Path) -> Iterator[None]:
    """Set the variables of a run for the duration of a plan, after which the process ends.

    Prefect makes its home when it is imported, so that cannot be inside the state root, and torch's
    compiler a folder of its own.
    """
    with scratch_folder("plan") as scratch:
        os.environ["PREFECT_HOME"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch)
        set_variables(root)
        yield


@dataclass(frozen=True)
class Plan:
    """What the plans of the flows differ in."""

    becomes: str  # what becomes of the linears
    data: CalibrationConfig
    device: str
    stages: "list[Finished]"
    memory: dict[str, int]  # bytes by stage
    seconds: dict[str, float]  # by stage
    how: str  # the seconds were found out
    writing: Writing | None  # of the text, where the model writes it
    shared: str = ""  # by how many processes the windows of a block are, where by several


def plan_lines(recipe: Any, ready: Ready, root: Path) -> list[str]:
    """Return the plan of a run, line by line; reads finished stages and writes nothing."""
    plan = _plan(recipe, ready)
    shape = ready.shape
    return [
        f"model   {ready.source.name}: {shape.num_blocks} blocks, {shape.parameters:,} parameters, "
        f"{shape.linear_weights:,} of them {plan.becomes}",
        f"text    {plan.data.samples} windows of {ready.length} tokens, source {plan.data.source}"
        + _written(plan.writing),
        *_disk_lines(ready, root),
        memory_line(plan.memory, plan.device),
        *(f"  {name}: {readable_bytes(n)}{_how(name, plan)}" for name, n in plan.memory.items()),
        *_time_lines(plan),
        "stages",
        *(f"  {stage}" for stage in plan.stages),
        "nothing was written",
    ]


def _plan(recipe: Any, ready: Ready) -> Plan:
    from flows.rebuild import PIPELINES
    from normtweak_core.model.source import resolve_device

    kind = kind_of(recipe.model_dump())
    stages = PIPELINES[kind.name].plan(recipe, ready)
    device = resolve_device(recipe.model.device)
    shape, length = ready.shape, ready.length
    if isinstance(recipe, TernaryRecipe):
        tokens = recipe.ternary.steps * recipe.ternary.batch * length
        becomes = f"to ternary, trained for {tokens:,} tokens{_sharing(recipe)}"
        work_of = ternary_work
    elif isinstance(recipe, FinetuneRecipe):
        export = ready.export
        tokens = recipe.finetune.steps * recipe.finetune.batch * length
        grid = f"{export.quantization.in_words} ({_groups(export.group_size)})"
        becomes = f"trained on at {grid}, end to end for {tokens:,} tokens{_sharing(recipe)}"
        work_of = finetune_work
    else:
        recipe = recipe if ready.base is None else ready.base.gridded(recipe)
        config = recipe.quantization
        method = config.method if recipe.base is None else f"codes of {recipe.base}"
        grid = f"{method}, {_groups(config.group_size)}"
        if config.activation_bits is not None:
            grid += f", {config.activation_bits}-bit activations"
        becomes = f"to {config.in_words} ({grid})"
        if recipe.export.format == "gguf":
            becomes += f", for llama.cpp {held_in_words(config, shape.linears)}"
        work_of = None
    memory = OWN[kind.name].memory(recipe, shape, length)
    data, text = kind.data_of(recipe), None
    if data.source == "generated":
        held = whole_bytes(recipe, shape)
        with limited(recipe.limits.memory):
            text = writing(
                ready.source.path,
                with_dtype(recipe.model, ready.source.path).dtype,
                device,
                data.samples,
                length,
                taken=held,
            )
        stage = "calibrate" if "calibrate" in memory else "data"
        memory[stage] = max(memory.get(stage, 0), FIXED_MEMORY + held + text.bytes)
    if work_of is None:
        at_once = text.at_once if text else None
        seconds, how = _tried(recipe, ready, device, at_once)
    else:
        seconds, how = _counted(work_of(recipe, shape, length))
    shared = ""
    if work_of is None and (count := processes(recipe)) > 1:
        shared = f", by {count} processes (threads of each: {os.environ['OMP_NUM_THREADS']})"
    return Plan(becomes, data, device, stages, memory, seconds, how, text, shared)


def _tried(
    recipe: Any, ready: Ready, device: str, at_once: int | None
) -> tuple[dict[str, float], str]:
    """Return seconds by stage as one block of the model tells them."""
    dtype = jobs.torch_dtype(with_dtype(recipe.model, ready.source.path).dtype)
    folder = ready.source.path
    costs = trials.tried(folder, dtype, device, ready.length, recipe.quantization)
    seconds = quantize_seconds(recipe, ready.shape, ready.length, costs, at_once)
    return seconds, f"tried on one block, and {STARTED:.0f} s whatever the model"


def _counted(work: dict[str, int]) -> tuple[dict[str, float], str]:
    estimate = time_estimate(work, measured_speed())
    speed = estimate.multiply_adds_per_second / 1e9
    return estimate.seconds, (
        f"counted multiply-adds at 35 % of the {speed:.0f} billion per second that a matrix "
        "product reaches here now, on the CPU, plus 25 s: right within a factor of about three"
    )


def _written(text: Writing | None) -> str:
    if text is None:
        return ""
    each = readable_bytes(text.bytes_each)
    return f", {text.at_once} at once in {readable_bytes(text.bytes)} ({each} each)"


def _how(stage: str, plan: Plan) -> str:
    if stage == "blocks":
        return f", block by block{plan.shared}"
    is_whole = stage in WHOLE or (stage == "calibrate" and plan.data.source == "generated")
    return ", with a whole model" if is_whole else ", block by block"


def _sharing(recipe: TernaryRecipe | FinetuneRecipe) -> str:
    count = num_sharing(recipe)
    return f" by {count} processes" if count > 1 else ""


def _groups(size: int | None) -> str:
    return f"groups of {size}" if size else "one scale a row"


def _disk_lines(ready: Ready, root: Path) -> list[str]:
    total = readable_bytes(sum(ready.disk.values()))
    free = readable_bytes(free_bytes(existing_folder(root)))
    return [
        f"disk    at most {total} under {root}, {free} free",
        *(f"  {what}: {readable_bytes(size)}" for what, size in ready.disk.items()),
    ]


def memory_line(
    stages: dict[str, int], device: str, available: Callable[[str], int] = available_memory
) -> str:
    """Return what a run needs at its peak beside what the device that it computes on has."""
    worst = max(stages, key=stages.__getitem__)
    free = available(device)
    warning = "; that may not be enough" if stages[worst] > free else ""
    where = "" if device == "cpu" else f" on {device}"
    return (
        f"memory  about {readable_bytes(stages[worst])} at its peak ({worst}), "
        f"{readable_bytes(free)} available{where}{warning}"
    )


def _time_lines(plan: Plan) -> list[str]:
    open_share = {stage.name: 1 - stage.cached / stage.parts for stage in plan.stages}
    left = {name: s * open_share.get(name, 1.0) for name, s in plan.seconds.items()}
    return [
        f"time    about {readable_seconds(sum(left.values()))} for what is not cached, of "
        f"{readable_seconds(sum(plan.seconds.values()))}; {plan.how}",
        *(f"  {name}: {readable_seconds(seconds)}" for name, seconds in left.items()),
    ]


def require_local_model(recipe: Any, root: Path) -> None:
    """Accept a float model that is on this machine; a plan fetches nothing.

    Raises:
        InputError: It is a hub model that is not in the local cache, or the recipe trains on what
            is no export.
    """
    config = recipe.model
    if isinstance(recipe, FinetuneRecipe):
        export = read_export_source(export_folder(config.source, root, writes=False))
        config = export.float_model(config, recipe.finetune.float_model)
    if given_path(config.source, "model.source").exists() or not is_hub_id(config.source):
        return
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(
        try_to_load_from_cache(config.source, "config.json", revision=config.revision), str
    ):
        raise InputError(
            f"a plan writes nothing, so the model must be here; {config.source} is not in the hub "
            f"cache: run `hf download {config.source}` first."
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


COMMANDS = {
    "plan": Command(
        "Check a recipe of quantize, ternary or finetune as its command would, and print disk,\n"
        "memory, time and finished stages. Nothing is written; a model of the hub must be in the\n"
        "local cache already.",
        [
            "plan conf/quickstart.yaml",
            "plan conf/ternary-quickstart.yaml --set ternary.steps=600",
            "plan MODEL --bits 4",
        ],
        add_recipe_or_model,
        run_plan,
    )
}
