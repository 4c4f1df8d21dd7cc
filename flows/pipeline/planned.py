"""Which stages of a run would be found finished; what depends on one that will run, will run too.

Only what a run's own key functions say counts. Nothing is written.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from tasks.engine.environment import state_root

if TYPE_CHECKING:
    from normtweak_core.calibration.config import CalibrationConfig
    from normtweak_core.finetune.source import ExportSource
    from tasks.models.job import Job
    from tasks.models.starting_point import StartingPoint
    from tasks.results import ExportResult


@dataclass(frozen=True)
class Stage:
    """Whether a stage, or how many of its parts, would be found finished."""

    name: str
    cached: int
    parts: int = 1

    def __str__(self) -> str:
        if self.parts == 1:
            return f"{self.name}: {'cached' if self.cached else 'will run'}"
        return f"{self.name}: {self.cached} of {self.parts} cached"


def quantize_stages(recipe: Recipe, job: "Job") -> list[Stage]:
    """Return the stages of a quantization in order."""
    from flows.pipeline.float_types import until_it_holds
    from flows.quantize import baseline_settings
    from tasks.engine.caching import cached_result
    from tasks.results import FloatType
    from tasks.stages.calibrate import calibration_key
    from tasks.stages.chain import ChainSettings
    from tasks.stages.export import export_key
    from tasks.stages.float_type import float_type_key
    from tasks.stages.tune import final_tune_key

    count = job.blocks[1]
    calibration = cached_result(calibration_key(job, recipe.calibration))
    chosen, blocks, baseline, tuned, export = None, [], [], None, None
    if calibration:
        key = float_type_key(job, recipe.export, calibration, recipe.quantization)
        chosen = cached_result(key)

    def find(float_type: FloatType) -> tuple[tuple, Any]:
        settings = ChainSettings(recipe.quantization, recipe.norm_tweak, float_type.dtype)
        blocks = _cached_blocks(job, calibration, settings)
        baseline = _cached_blocks(job, calibration, baseline_settings(settings))
        tuned = export = None
        if len(blocks) == count and recipe.final_tune.enabled:
            key = final_tune_key(job, calibration, blocks, settings, recipe.final_tune)
            tuned = cached_result(key)
        if len(blocks) == count and (tuned or not recipe.final_tune.enabled):
            key = export_key(job, calibration, blocks, tuned, settings, recipe.export)
            export = cached_result(key)
        return (blocks, baseline, tuned), export

    if chosen:
        (blocks, baseline, tuned), export = until_it_holds(recipe.export, chosen, find)
    stages = [
        _dry_run(job),
        Stage("calibrate", bool(calibration)),
        Stage("float type", bool(chosen)),
        Stage("blocks", len(blocks), count),
        Stage("baseline", len(baseline), count),
    ]
    stages += [Stage("final tune", bool(tuned))] if recipe.final_tune.enabled else []
    return stages + _last_stages(recipe, job, recipe.calibration, export)


def ternary_stages(recipe: TernaryRecipe, job: "Job") -> list[Stage]:
    """Return the stages of a ternary training in order."""
    from flows.pipeline.float_types import until_it_holds
    from tasks.engine.caching import cached_result
    from tasks.results import FloatType
    from tasks.stages.calibrate import calibration_key
    from tasks.stages.float_type import ternary_float_type_key
    from tasks.stages.training.surgery import surgery_key
    from tasks.stages.training.ternary import training_origin
    from tasks.stages.training.ternary_export import ternary_export_key

    config = recipe.ternary
    data = cached_result(calibration_key(job, config.data))
    surgery = cached_result(surgery_key(job, data, config)) if data else None
    origin = training_origin(job, data, surgery, config) if surgery else None
    training, trained = _training(origin, config.steps)
    chosen = export = None
    if surgery:
        key = ternary_float_type_key(job, recipe.export, data, surgery, config)
        chosen = cached_result(key)

    def find(float_type: FloatType) -> tuple[None, Any]:
        key = ternary_export_key(job, data, trained, recipe.export, float_type.dtype)
        return None, cached_result(key)

    if trained and chosen:
        export = until_it_holds(recipe.export, chosen, find)[1]
    return [
        _dry_run(job, streams=False),
        Stage("data", bool(data)),
        Stage("surgery", bool(surgery)),
        Stage("float type", bool(chosen)),
        training,
        *_last_stages(recipe, job, config.data, export),
    ]


def finetune_stages(recipe: FinetuneRecipe, source: "ExportSource", job: "Job") -> list[Stage]:
    """Return the stages of a fine-tuning in order.

    Args:
        recipe: What is wanted.
        source: The export that is trained on.
        job: Of its float model.
    """
    from flows.pipeline.float_types import EXACT, until_it_holds
    from tasks.engine.caching import cached_result
    from tasks.results import FloatType
    from tasks.stages.calibrate import calibration_key
    from tasks.stages.float_type import start_float_type_key
    from tasks.stages.training.finetune import finetune_export_key, finetune_origin
    from tasks.stages.training.finetune_blocks import trained_block_key

    config = recipe.finetune
    count = job.blocks[1] if config.block_steps else 0
    data = cached_result(calibration_key(job, config.data))
    start = _start_under_the_root(source)
    blocks: list = []
    origin = export = None
    if data and start:
        for index in range(count):
            parent = blocks[-1] if blocks else None
            key = trained_block_key(job, data, start, config, index, parent)
            if (block := cached_result(key)) is None:
                break
            blocks.append(block)
        if len(blocks) == count:
            origin = finetune_origin(job, data, start, blocks, config)
    training, trained = _training(origin, config.steps)
    chosen = None
    if data and start:
        chosen = cached_result(start_float_type_key(job, recipe.export, data, start))

    def find(float_type: FloatType) -> tuple[None, Any]:
        dtype = float_type.dtype
        key = finetune_export_key(job, data, start, trained, recipe.export, dtype)
        return None, cached_result(key)

    if trained and chosen:
        export = until_it_holds(recipe.export, chosen, find, EXACT)[1]
    return [
        _dry_run(job),
        Stage("data", bool(data)),
        Stage("float type", bool(chosen)),
        *([Stage("blocks", len(blocks), count)] if count else []),
        training,
        *_last_stages(recipe, job, config.data, export, start.export if start else None, True),
    ]


def _start_under_the_root(source: "ExportSource") -> "StartingPoint | None":
    """Return what is trained on; None where a run would first copy it under the state root."""
    from tasks.models.starting_point import StartingPoint, export_in_root, imported_folder

    root = state_root()
    copied = imported_folder(root, source.payload_sha256)
    is_there = source.folder.is_relative_to(root) or copied.is_dir()
    return StartingPoint(source, export_in_root(source)) if is_there else None


def _dry_run(job: "Job", streams: bool = True) -> Stage:
    """Return the stage that every flow begins with."""
    from tasks.engine.caching import cached_result
    from tasks.stages.dry_run import dry_run_key

    return Stage("dry run", bool(cached_result(dry_run_key(job, streams))))


def _training(origin: str | None, steps: int) -> tuple[Stage, Any]:
    """Return the stage of a training, and its last segment if that is finished."""
    from tasks.engine.caching import cached_result
    from tasks.stages.training.segments import segment_ends, segment_key

    ends = segment_ends(steps)
    found = [cached_result(segment_key(origin, until)) for until in ends] if origin else []
    return Stage("training", sum(map(bool, found)), len(ends)), found[-1] if found else None


def _last_stages(
    recipe: Any,
    job: "Job",
    data: "CalibrationConfig",
    export: "ExportResult | None",
    start: "ExportResult | None" = None,
    measures_start: bool = False,
) -> list[Stage]:
    """Return the stages that every flow ends with.

    Args:
        recipe: Of any of the flows.
        job: Of the float model.
        data: The text that gives the windows of the evaluation their length.
        export: What the run makes, if that is finished.
        start: Another export that is measured, where it is under the root.
        measures_start: Whether there is such an export at all.
    """
    from tasks.engine.caching import cached_result
    from tasks.models.subjects import export_subject, float_subject
    from tasks.stages.calibrate import calibration_length
    from tasks.stages.evaluate import evaluation_key, float_evaluation_key, text_of
    from tasks.stages.export import verify_key
    from tasks.stages.score import items_of, task_key

    text = text_of(
        recipe.evaluation.perplexity, job.source, calibration_length(job, data), job.context
    )
    items = items_of(recipe.evaluation)
    keys = [float_evaluation_key(job, text)]
    keys += [task_key(float_subject(job), one) for one in items]
    for measured in filter(None, (start, export)):
        keys.append(evaluation_key(job, measured, text))
        keys += [task_key(export_subject(job, measured), one) for one in items]
    cached = sum(bool(cached_result(key)) for key in keys)
    models = 3 if measures_start else 2
    return [
        Stage("export", bool(export)),
        Stage("verify", bool(export and cached_result(verify_key(job, export)))),
        Stage("evaluate", cached, models * (1 + len(items))),
        Stage("register", 0),
    ]


def _cached_blocks(job: "Job", calibration: object, settings: object) -> list:
    """Return the finished blocks of a chain, up to the first that is missing."""
    from tasks.engine.caching import cached_result
    from tasks.stages.blocks import block_key

    finished: list = []
    for index in range(job.blocks[1]):
        parent = finished[-1] if finished else None
        block = cached_result(block_key(job, calibration, settings, index, parent))
        if block is None:
            break
        finished.append(block)
    return finished
