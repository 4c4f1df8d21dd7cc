"""A recipe that ends in a registered version: its stages, its reports, its registration."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect.utilities.annotations import quote

from flows.checks.inputs import Ready
from flows.checks.preflight import preflight
from flows.pipeline.declared import Finished, Pipeline
from flows.pipeline.execution import Execution, Told
from flows.pipeline.kept_files import keep_for_rebuild
from flows.pipeline.limits import within
from flows.pipeline.measuring import EVALUATE_FLOAT, FLOAT, SCORE_FLOAT, beside_float, measured
from flows.pipeline.operated import milestones
from flows.pipeline.places import NOTHING, place_tags
from flows.pipeline.run_record import run_record, source_tags, write_samples
from flows.recipes.kinds import RecipeKind, kind_of
from flows.reports.publish import publish, publish_registry_link
from flows.reports.results import Measured, write_evaluation
from normtweak_core.errors import keys_called
from normtweak_core.evaluate.gate import gate_failures
from normtweak_core.export.payload import payload_bytes
from tasks.engine.addresses import without_password
from tasks.engine.artifacts import Result, read_json
from tasks.engine.environment import state_root
from tasks.engine.stage import Found
from tasks.models.job import open_job
from tasks.models.work import Work
from tasks.registry.promotion import MEASURED_ON, Verdict
from tasks.registry.tracking import TrainingRun
from tasks.registry.waiting import Waiting, unless_cancelled
from tasks.results import CalibrationResult, ExportResult, FloatType
from tasks.stages.dry_run import dry_run
from tasks.stages.export import source_facts
from tasks.stages.register import register_stage
from tasks.stages.size_check import size_check
from tasks.stages.verify import verify

log = logging.getLogger(__name__)

BEGINNING = (dry_run, SCORE_FLOAT)
ENDING = (verify, size_check, EVALUATE_FLOAT, *beside_float("evaluate", "export"))


@dataclass
class Run(Work):
    """One execution of a recipe."""

    began: float = field(default_factory=time.monotonic, kw_only=True)  # of the monotonic clock
    execution: Execution = field(default_factory=Execution, kw_only=True)
    is_rebuild: bool = field(default=False, kw_only=True)  # nothing of it may reach the registry
    step_values: Callable[[Any, int], dict[str, float]] | None = field(default=None, kw_only=True)

    @property
    def cached(self) -> dict[str, bool]:
        """Which parts of stages were found finished, by what people call them."""
        return self.execution.cached

    @contextmanager
    def training_shown(self, training: Any) -> Iterator[Callable[..., None]]:
        """Show a training while it runs: on the terminal, on Prefect's page, in MLflow."""
        # The curves of the registered training are there; a rebuild must not be written into them.
        curves: AbstractContextManager[Any] = nullcontext()
        if not self.is_rebuild:
            curves = TrainingRun(
                self.recipe.name, training.origin, self._training_params(), source_tags()
            )
        with curves as tracked, self.progress.stage("training", "steps") as bar:

            def advance(done: int, steps: int, loss: float, speed: float) -> None:
                bar(done, steps, f"loss {loss:.4f}, {speed:,.0f} tokens/s")
                if tracked is not None:
                    values = self.step_values(self, done - 1) if self.step_values else {}
                    tracked.log(done, {"train/loss": loss, **values})

            yield advance

    def _training_params(self) -> dict[str, Any]:
        section = getattr(self.recipe, kind_of(self.recipe.model_dump()).name)
        params = section.model_dump(mode="json", exclude={"data"})
        return {"model": self.job.source.name} | params | {"seed": self.recipe.seed}


@dataclass(frozen=True)
class RecipePipeline(Pipeline):
    """A pipeline whose export is registered, and what differs between those."""

    kind: RecipeKind
    report: Callable[..., Any]  # takes run and results, with the fields of `RunReports`
    told: Mapping[str, Told] = field(default_factory=dict)  # by stage, see `Execution`
    rows: Callable[[Run, Found], list[dict[str, Any]]] = lambda run, found: []  # one a block
    training: Callable[[Found, Any], dict[str, Any]] | None = None  # what `--result` tells of it
    inputs: Callable[[Any, bool], dict[str, Any]] = lambda ready, writes: {}
    step_values: Callable[[Any, int], dict[str, float]] | None = None  # of the run, by step
    streams: bool = True  # whether the model is taken block by block
    data: str = "data"  # the stage of the text that is calibrated with or trained on

    @property
    def all_told(self) -> dict[str, Told]:
        """What is done after each part of a stage, in every pipeline and in this."""
        return {"dry run": _tell_uncalled, **self.told}

    def run(self, recipe: Any) -> dict[str, Any]:
        """Carry out a recipe, and return what ``--result`` writes."""
        began = time.monotonic()
        # The command has done so before it started a server; a scheduled run has not.
        ready = preflight(recipe, state_root())
        for warning in ready.warnings:
            log.warning("%s", warning)
        run = self.begin(recipe, ready, began=began)
        with within(recipe.limits), keys_called({"calibration": self.kind.data}):
            found = self.walk(run, run.execution.visit, self.inputs(ready, True))
            return self._end(run, found)

    def rebuild(
        self, recipe: Any, revisions: dict[str, str], float_type: FloatType | None
    ) -> tuple[Run, Found]:
        """Carry out a recipe up to its export, and return what was made.

        Args:
            recipe: The recipe.
            revisions: Commits of the hub data sets that it reads.
            float_type: That the export had; None: it is found out again.
        """
        ready = preflight(recipe, state_root(), evaluates=False)
        run = self.begin(recipe, ready, revisions, is_rebuild=True)
        with within(recipe.limits), keys_called({"calibration": self.kind.data}):
            pipeline = self.upto("export")
            inputs = self.inputs(ready, True)
            inputs |= {} if float_type is None else {"float type": float_type}
            return run, pipeline.walk(run, run.execution.visit, inputs)

    def begin(
        self, recipe: Any, ready: Ready, revisions: dict[str, str] | None = None, **run: Any
    ) -> Run:
        """Return a run of a recipe at its beginning.

        Args:
            recipe: The recipe.
            ready: What was found out about it.
            revisions: Commits of hub data sets to read, by name; of others the newest is read.
            run: Further fields of the run.
        """
        model = ready.float_model or recipe.model
        job = open_job(model, recipe.seed, revisions, getattr(recipe, "base", None))
        return Run(
            recipe if job.base is None else job.base.gridded(recipe),
            job,
            self.kind.data_of(recipe),
            self.streams,
            execution=Execution(self.all_told),
            step_values=self.step_values,
            **run,
        )

    def plan(self, recipe: Any, ready: Ready) -> list[Finished]:
        """Return what a run of a recipe would find finished; changes nothing."""
        run = self.begin(recipe, ready)
        return [*self.finished(run, self.inputs(ready, False)), Finished("register", 0)]

    def _end(self, run: Run, found: Found) -> dict[str, Any]:
        """Tell and register what a run has made, and return what ``--result`` writes."""
        export: ExportResult = found["export"]
        result = with_export_sizes(measured(run, found, "evaluate", FLOAT), export)
        data = found[self.data]
        reports = self.report(
            run,
            found,
            recipe=run.recipe,
            quality=read_json(data.quality),
            metrics=result.metrics,
            origin=source_facts(run, data)
            | {"export_sha256": export.export_sha256, "arithmetic": run.job.arithmetic},
            export=state_root() / export.folder,
            float_type=found["float type"],
            float_bytes=payload_bytes(run.job.source.path),
            facts=facts_of(found),
        )
        files = publish(reports.report())
        name = run.job.source.name
        files += write_evaluation(reports.folder, result, run.recipe.seed, run.recipe.name, name)
        metrics = result.metrics | reports.more_metrics()
        ends = run.execution.ends(self.stages)
        registered = _register(run, data, export, metrics, reports, files, result, ends)
        training = self.training(found, reports) if self.training else {}
        return {
            "export_dir": str(state_root() / export.folder),
            "export_sha256": export.export_sha256,
            "reports_dir": str(reports.folder),
            "metrics": metrics,
            "registered": registered,
            "blocks": self.rows(run, found),
            "cached": run.cached,
            "problems": reports.problems(),
            "notes": reports.notes(),
        } | training


def facts_of(found: Found) -> dict[str, str]:
    """Return what the report and the registry say of the stages of a run."""
    told: dict[str, str] = {}
    for result in found.values():
        if isinstance(result, Result):
            told |= result.facts()
    return told


def with_export_sizes(found: Measured, export: ExportResult) -> Measured:
    """Return an evaluation with the size of the export that it is of."""
    sizes = {"bits_per_weight": export.bits_per_weight, "size_bytes": float(export.size_bytes)}
    return replace(found, metrics=found.metrics | sizes)


def _tell_uncalled(work: Any, found: Found, cached: bool) -> None:
    for name in found["dry run"].uncalled:
        log.warning("%s is read without being called, if at all, and stays in float", name)


def _register(
    run: Run,
    data: CalibrationResult,
    export: ExportResult,
    metrics: dict[str, float],
    reports: Any,
    files: list[Path],
    result: Measured,
    wait_for: list[Any],
) -> dict[str, Any]:
    """Return the registered version of an export, with its metrics, lineage and reports.

    An export that fails the gate is registered as well, and no alias moves to it.
    """
    recipe = run.recipe
    failures = gate_failures(recipe.gate, metrics)
    for failure in failures:
        log.warning("gate: %s", failure)
    kept = keep_for_rebuild(reports.folder, state_root() / export.folder, data)
    record = run_record(run.began, recipe, reports, run.job.source.name, result.samples)
    facts = {
        MEASURED_ON: result.measured_on,
        **{name: told for name, told in record.tags.items() if name.startswith("prefect.")},
        **kept.tags,
        **place_tags(recipe, run.job.source),
    }
    tags = {name: told or NOTHING for name, told in (reports.lineage() | facts).items()}
    told = [*files, *write_samples(reports.folder, result.samples), *kept.files]
    verdict = Verdict(
        tuple(failures),
        recipe.registry.promote_to,
        asked=recipe.gate.asks,
        confidence=recipe.gate.confidence,
    )
    waiting = Waiting(
        name=recipe.name,
        alias=recipe.registry.alias,
        export=export.folder,
        export_sha256=export.export_sha256,
        metrics=metrics,
        tags=tags,
        reports=[str(file.relative_to(state_root())) for file in told],
        verdict=verdict,
        record=record,
        registry=without_password(os.environ["MLFLOW_TRACKING_URI"]),
    )
    with unless_cancelled(state_root(), waiting):
        registered = register_stage(quote(waiting), wait_for=wait_for)
    milestones.info(
        "registered %s%s",
        registered["model_uri"],
        f" ({', '.join(registered['aliases'])})" if registered["aliases"] else "",
    )
    publish_registry_link(recipe.name, registered)
    return registered
