"""The keys of all stages of a recipe, without running one."""

import dataclasses
import hashlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

from flows.recipes.quantize import Recipe
from tasks.engine.environment import state_root
from tasks.results import FloatType

NOTHING_FOUND = SimpleNamespace(float_model=None)  # by a preflight

# Where aliases go: `test_leaf_effects`.
GATE = {
    "gate.max_perplexity_ratio",
    "gate.max_kl",
    "gate.min_top1_agreement",
    "gate.max_accuracy_drop",
    "gate.confidence",
    "registry.promote_to",
}

# What a run may take; its values are what a test of equal keys gives them.
LIMITS = {"limits.memory": 8 << 30, "limits.disk": 8 << 30, "limits.threads": 3}
# How many processes compute: the same bytes.
DEVICES = {"devices": 2}

TASK_ITEMS = Path(__file__).parents[1] / "data" / "tasks"
# Keys that only named tasks read: another value, and what stands beside it before and after.
TASKED = {"evaluation.data": str(TASK_ITEMS), "evaluation.tasks": ["piqa"]}
TASK_KEYS = {
    "evaluation.tasks": (["piqa", "boolq"], TASKED),
    "evaluation.max_items": (5, TASKED),
    "evaluation.data": ("{0}/tasks", TASKED),
}


def write_other_items(folder: Path) -> None:
    """Write the first nine items of a task below a folder."""
    place = folder / "tasks" / "piqa"
    place.mkdir(parents=True)
    lines = (TASK_ITEMS / "piqa" / "items.jsonl").read_text().splitlines(keepends=True)
    (place / "items.jsonl").write_text("".join(lines[:9]))


def changed(values: dict, key: str, value: object) -> dict:
    *sections, leaf = key.split(".")
    copy = {**values}
    place = copy
    for section in sections:
        place[section] = {**place.get(section, {})}
        place = place[section]
    place[leaf] = value
    return copy


def stage_keys(
    pipeline,
    recipe,
    device: str = "cpu",
    inputs: dict | None = None,
    ready=NOTHING_FOUND,
    widths: list | None = None,
):
    """Return the key of every part of a pipeline's stages, by its label.

    Each result that a stage returns is made up: its content is the key. Writes the manifest of an
    export below the state root: the verification looks who reads it.
    """
    run = pipeline.begin(recipe, ready)
    run.job = dataclasses.replace(run.job, device=device)
    keys: dict[str, str] = {}

    def visit(stage, work, found) -> list:
        results: list = []
        for part in stage.parts(work):
            before = results[-1] if stage.chained and results else None
            key = keys[stage.label_of(work, part)] = stage.key(work, found, part, before)
            results.append(made(result_of(stage), key))
        if stage.name == "float type":
            asked = recipe.export.dtype
            results = [FloatType(dtype="float16" if asked == "auto" else asked)]
        if stage.name == "widths":
            results = [results[0].model_copy(update={"widths": widths})]
        if stage.name == "export":
            write_manifest(state_root() / results[0].folder, recipe.export.format)
        return results

    pipeline.walk(run, visit, inputs)
    return keys


def quantize_keys(
    recipe: Recipe, device: str = "cpu", widths: list | None = None
) -> dict[str, str]:
    """Return the key of every stage of a quantization, its baseline left out."""
    from flows.quantize import QUANTIZE

    keys = stage_keys(QUANTIZE, recipe, device, widths=widths)
    return {name: key for name, key in keys.items() if not name.startswith("rtn ")}


def result_of(stage) -> type:
    """Return the class of a stage's results, the first where it has several."""
    found = inspect.signature(stage.body).return_annotation
    return getattr(found, "__args__", [found])[0]


def write_manifest(folder: Path, form: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"export": {"format": form}, "tensors": {}, "probe": {}}
    (folder / "normtweak.json").write_text(json.dumps(manifest))


def made(kind: type, key: str):
    """A result whose every field stands for the stage that made it."""
    from tasks.engine.artifacts import ArtifactRef

    digest = hashlib.sha256(key.encode()).hexdigest()
    reference = ArtifactRef.model_construct(path="x", size=1, sha256=digest)
    values = {name: digest for name in kind.model_fields}
    for name, field in kind.model_fields.items():
        if field.annotation is ArtifactRef:
            values[name] = reference
    return kind.model_construct(**values)
