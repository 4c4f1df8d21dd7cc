"""What every flow does with its stages: run them or take their results, and register an export."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run
from prefect.utilities.annotations import quote

from flows.pipeline.kept_files import keep_for_rebuild
from flows.pipeline.operated import milestones
from flows.pipeline.places import NOTHING, place_tags
from flows.pipeline.run_record import run_record, write_samples
from flows.reports.publish import publish_registry_link
from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.evaluate.gate import gate_failures
from normtweak_core.export.config import ExportConfig
from tasks.engine.artifacts import ArtifactRef
from tasks.engine.caching import cached_result
from tasks.engine.environment import peak_rss_bytes, state_root
from tasks.engine.progress import Progress
from tasks.models.job import Job
from tasks.results import CalibrationResult, ExportResult
from tasks.server.cancelling import raise_if_cancelled
from tasks.stages.calibrate import calibrate, calibration_key, data_identity
from tasks.stages.dry_run import dry_run_key, dry_run_stage
from tasks.stages.export import verify_key, verify_stage
from tasks.stages.register import register_stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataRead:
    """The windows of a run, and what they were made from."""

    result: CalibrationResult
    identity: str  # of the user's text or data set; empty where there was none


@dataclass
class Stages:
    """The stages of one execution: run, or taken from the cache."""

    began: float  # of the monotonic clock: before a model was hashed
    progress: Progress = field(default_factory=Progress)
    cached: dict[str, bool] = field(default_factory=dict)
    results: dict[tuple[str, str], Any] = field(default_factory=dict)  # by name and key

    def stage(self, name: str, key: str, task: Callable[..., Any], **arguments: Any) -> Any:
        """Run a stage, or take its cached result; arguments in memory are not walked through."""
        raise_if_cancelled(ask=False)
        if (name, key) in self.results:
            return self.results[name, key]
        self.cached[name] = cached_result(key) is not None
        log.info("%s%s", name, ": cached" if self.cached[name] else "")
        quoted = {
            key: value if isinstance(value, str | int | float) else quote(value)
            for key, value in arguments.items()
        }
        result = self.results[name, key] = task(key=key, **quoted)
        return result


@dataclass
class Run(Stages):
    """One execution of a recipe."""

    job: Job = field(kw_only=True)
    measured_on: str = ""  # hash of what the evaluation has read; equal where two can be compared
    data: DataRead | None = None  # what was calibrated with or trained on
    is_rebuild: bool = False  # nothing of it may reach the registry

    def source_facts(self, calibration: CalibrationResult) -> dict[str, str]:
        """Return names and hashes of what the result is made from."""
        return {
            "source_model": self.job.source.name,
            "source_revision": self.job.source.revision or "",
            "source_sha256": self.job.fingerprint.sha256,
            "source_tokenizer_sha256": self.job.tokenization_sha256,
            "calibration_sha256": calibration.windows.sha256,
            "calibration_data": "" if self.data is None else self.data.identity,
        }


def rehearse(run: Run, streams: bool = True) -> None:
    """Take a few tokens through all that the run does to the model, before anything costs time.

    Args:
        run: The run.
        streams: Whether the model is taken block by block.
    """
    key = dry_run_key(run.job, streams)
    done = run.stage("dry run", key, dry_run_stage, job=run.job, streams=streams)
    for name in done.uncalled:
        log.warning("%s is read without being called, if at all, and stays in float", name)


def calibration_set(run: Run, config: CalibrationConfig, name: str) -> CalibrationResult:
    """Return the text that a model is calibrated or trained on.

    Args:
        run: The run.
        config: What text.
        name: Of the stage.
    """
    result = run.stage(
        name,
        calibration_key(run.job, config),
        calibrate,
        config=config,
        job=run.job,
        progress=run.progress,
    )
    run.data = DataRead(result, data_identity(run.job, config))
    return result


def verify(run: Run, config: ExportConfig, export: ExportResult) -> None:
    """Return once an independent reader has found in the export what was quantized."""
    run.stage(
        "verify",
        verify_key(run.job, export),
        verify_stage,
        export=export,
        timeout=config.verify_timeout,
    )


def calibration_sample(calibration: CalibrationResult) -> dict[str, Any]:
    """Return the first window of the text and its ids, as the stage that made them decoded it."""
    from tasks.tables.calibration import calibration_table

    windows = calibration_table(calibration.vocab_size)
    table = windows.read(state_root() / calibration.table.path)
    return {"ids": table["input_ids"][0].tolist(), "text": table["text"][0]}


def read_json(reference: ArtifactRef) -> Any:
    """Return what a published JSON file holds."""
    return json.loads((state_root() / reference.path).read_text(encoding="utf-8"))


def register(
    run: Run,
    recipe: Any,
    export: ExportResult,
    metrics: dict[str, float],
    reports: Any,
    files: list[Path],
    samples: list[dict[str, str]],
) -> dict[str, Any]:
    """Return the registered version of an export, with its metrics, lineage and reports.

    An export that fails the gate is registered as well, and no alias moves to it.

    Args:
        run: The run, which has evaluated the export.
        recipe: Names the version and its alias, and holds the gate.
        export: What was verified.
        metrics: Of its evaluation.
        reports: Tell its lineage.
        files: The written reports; what a rebuild needs goes with them.
        samples: What the float and the quantized model write.
    """
    from tasks.registry.promotion import MEASURED_ON, Verdict

    failures = gate_failures(recipe.gate, metrics)
    for failure in failures:
        log.warning("gate: %s", failure)
    assert run.data is not None
    kept = keep_for_rebuild(reports.folder, state_root() / export.folder, run.data.result)
    record = run_record(run, recipe, reports, samples)
    facts = {
        MEASURED_ON: run.measured_on,
        **{name: told for name, told in record.tags.items() if name.startswith("prefect.")},
        **kept.tags,
        **place_tags(recipe, run.job.source),
    }
    tags = {name: told or NOTHING for name, told in (reports.lineage() | facts).items()}
    told = [*files, *write_samples(reports.folder, samples), *kept.files]
    registered = register_stage(
        recipe.name,
        recipe.registry.alias,
        quote(export),
        quote(metrics),
        quote(tags),
        quote([str(file) for file in told]),
        quote(
            Verdict(
                tuple(failures),
                recipe.registry.promote_to,
                asked=recipe.gate.asks,
                confidence=recipe.gate.confidence,
            )
        ),
        quote(record),
    )
    milestones.info(
        "registered %s%s",
        registered["model_uri"],
        f" ({', '.join(registered['aliases'])})" if registered["aliases"] else "",
    )
    publish_registry_link(recipe.name, registered)
    return registered


def outcome(
    run: Run,
    export: ExportResult,
    metrics: dict[str, float],
    reports: Any,
    registered: dict[str, Any],
    blocks: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return what ``--result`` writes of every flow that makes an export.

    Args:
        run: The run, at its end.
        export: What it has made.
        metrics: Of the evaluation.
        reports: Tell their folder, and the problems and notes of the run.
        registered: The version.
        blocks: One row a block.
    """
    return {
        "export_dir": str(state_root() / export.folder),
        "export_sha256": export.export_sha256,
        "reports_dir": str(reports.folder),
        "metrics": metrics,
        "registered": registered,
        "blocks": blocks,
        "cached": run.cached,
        "problems": reports.problems(),
        "notes": reports.notes(),
        "seconds": time.monotonic() - run.began,
        "peak_rss_bytes": peak_rss_bytes(),
        "flow_run_id": str(flow_run.id),
    }
