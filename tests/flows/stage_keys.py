"""The keys of all stages of a recipe, without running one."""

import dataclasses
import hashlib
import json
from pathlib import Path

from flows.recipes.quantize import Recipe
from tasks.engine.environment import state_root

# Where aliases go: `test_leaf_effects`.
GATE = {
    "gate.max_perplexity_ratio",
    "gate.max_kl",
    "gate.min_top1_agreement",
    "gate.max_accuracy_drop",
    "gate.confidence",
    "registry.promote_to",
}

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


def stage_keys(recipe: Recipe, device: str = "cpu") -> dict[str, str]:
    """Return the key of every stage, with results whose content is the key of their stage.

    Writes the manifest of an export below the state root: the verification looks who reads it.
    """
    from tasks.models.job import open_job
    from tasks.models.subjects import export_subject, float_subject
    from tasks.results import BlockResult, CalibrationResult, ExportResult, FinalTuneResult
    from tasks.stages.blocks import block_key
    from tasks.stages.calibrate import calibration_key, calibration_length
    from tasks.stages.chain import ChainSettings
    from tasks.stages.dry_run import dry_run_key
    from tasks.stages.evaluate import evaluation_key, float_evaluation_key, text_of
    from tasks.stages.export import export_key, verify_key
    from tasks.stages.float_type import float_type_key
    from tasks.stages.score import items_of, task_key
    from tasks.stages.tune import final_tune_key

    job = dataclasses.replace(open_job(recipe.model, recipe.seed), device=device)
    keys = {"dry run": dry_run_key(job)}
    keys["calibrate"] = calibration_key(job, recipe.calibration)
    calibration = made(CalibrationResult, keys["calibrate"])
    keys["float type"] = float_type_key(job, recipe.export, calibration, recipe.quantization)
    dtype = "float16" if recipe.export.dtype == "auto" else recipe.export.dtype
    settings = ChainSettings(recipe.quantization, recipe.norm_tweak, dtype)
    blocks: list = []
    for index in range(job.blocks[1]):
        parent = blocks[-1] if blocks else None
        key = keys[f"block {index}"] = block_key(job, calibration, settings, index, parent)
        blocks.append(made(BlockResult, key))
    tuned = None
    if recipe.final_tune.enabled:
        key = final_tune_key(job, calibration, blocks, settings, recipe.final_tune)
        keys["final tune"] = key
        tuned = made(FinalTuneResult, key)
    keys["export"] = export_key(job, calibration, blocks, tuned, settings, recipe.export)
    export = made(ExportResult, keys["export"])
    write_manifest(state_root() / export.folder, recipe.export.format)
    keys["verify"] = verify_key(job, export)
    length = calibration_length(job, recipe.calibration)
    text = text_of(recipe.evaluation.perplexity, job.source, length, job.context)
    keys["evaluate float"] = float_evaluation_key(job, text)
    keys["evaluate"] = evaluation_key(job, export, text)
    for items in items_of(recipe.evaluation):
        keys[f"evaluate float: {items.task}"] = task_key(float_subject(job), items)
        keys[f"evaluate: {items.task}"] = task_key(export_subject(job, export), items)
    return keys


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
