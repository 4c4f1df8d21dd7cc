"""What every flow measures: a text in pairs, and named tasks, of a model beside its float model."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from flows.checks.known_tokens import check_tokens
from flows.pipeline.run import Run, Stages, read_json
from flows.recipes.evaluation import OPTIONS, EvaluationRequest
from flows.reports.results import Measured
from normtweak_core.calibration.length import effective_length
from normtweak_core.errors import keys_called
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.evaluate.task_scores import TaskComparison, TaskScores
from normtweak_core.model.source import resolve_device
from tasks.models.addresses import MeasuredModel, measured_model
from tasks.models.subjects import Subject, export_subject, float_subject
from tasks.results import ExportResult
from tasks.stages.evaluate import (
    Text,
    alone_key,
    evaluate_alone_stage,
    evaluate_pair_stage,
    pair_key,
    text_of,
)
from tasks.stages.score import Items, evaluate_task_stage, items_of, task_key

log = logging.getLogger(__name__)


def measure_alone(run: Stages, text: Text, items: list[Items], subject: Subject) -> Measured:
    """Return how a model does by itself; metrics are called ``float``."""
    found = run.stage(
        f"evaluate {subject.name}",
        alone_key(subject, text),
        evaluate_alone_stage,
        label=f"evaluate {subject.name}",
        text=text,
        subject=subject,
        progress=run.progress,
    )
    scores = {one.task: _scores(run, subject, one, subject.name) for one in items}
    metrics = dict(found.metrics)
    for one in scores.values():
        metrics |= one.metrics("float")
    return _measured(read_json(found.details), metrics, scores, text, items)


def measure_pair(
    run: Stages,
    text: Text,
    items: list[Items],
    subject: Subject,
    beside: Subject,
    names: tuple[str, str] = ("evaluate", "evaluate float"),
) -> Measured:
    """Return how a model does beside its float model, on the same tokens and items.

    Args:
        run: The run.
        text: To predict.
        items: Of named tasks.
        subject: The quantized model.
        beside: The float model, whose own numbers are computed once for all that is compared.
        names: Of the two stages, for people.
    """
    alone = run.stage(
        names[1],
        alone_key(beside, text),
        evaluate_alone_stage,
        label=names[1],
        text=text,
        subject=beside,
        progress=run.progress,
    )
    pair = run.stage(
        names[0],
        pair_key(subject, beside, text),
        evaluate_pair_stage,
        label=names[0],
        text=text,
        subject=subject,
        beside=beside,
        progress=run.progress,
    )
    metrics, scores = pair.metrics | alone.metrics, {}
    for one in items:
        expected = _scores(run, beside, one, names[1])
        scores[one.task] = _scores(run, subject, one, names[0])
        both = TaskComparison(float_scores=expected, quantized_scores=scores[one.task])
        metrics |= both.metrics()
    return _measured(read_json(pair.details), metrics, scores, text, items)


def score_float_model(run: Run, config: EvaluationConfig) -> list[Items]:
    """Return the items of the named tasks, scored on the float model before the long work.

    What cannot be scored, such as an answer longer than the context, stops the run here.
    """
    items, subject = items_of(config), float_subject(run.job)
    for one in items:
        _scores(run, subject, one, "evaluate float")
    return items


def measure_export(
    run: Run,
    config: EvaluationConfig,
    items: list[Items],
    calibration_length: int,
    export: ExportResult,
    name: str = "evaluate",
) -> Measured:
    """Return how the export of a run does beside the float model.

    Args:
        run: The run.
        config: What text to measure on.
        items: Of the named tasks.
        calibration_length: Tokens per window where the recipe names no other length.
        export: The export.
        name: Of the stage.
    """
    text = text_of(config.perplexity, run.job.source, calibration_length, run.job.context)
    subjects = export_subject(run.job, export), float_subject(run.job)
    found = measure_pair(run, text, items, *subjects, (name, "evaluate float"))
    run.measured_on = found.measured_on
    sizes = {"bits_per_weight": export.bits_per_weight, "size_bytes": float(export.size_bytes)}
    return Measured(**{**vars(found), "metrics": found.metrics | sizes})


def _scores(run: Stages, subject: Subject, items: Items, name: str) -> TaskScores:
    found = run.stage(
        f"{name}: {items.task}",
        task_key(subject, items),
        evaluate_task_stage,
        label=f"{name}: {items.task}",
        items=items,
        subject=subject,
        progress=run.progress,
    )
    return TaskScores.model_validate(read_json(found.scores))


def _measured(
    details: dict[str, Any],
    metrics: dict[str, float],
    scores: dict[str, TaskScores],
    text: Text,
    items: list[Items],
) -> Measured:
    own = details.get("quantized_result", details)["window_nll"]
    inputs = text.inputs() | ({"tasks": [one.inputs() for one in items]} if items else {})
    # A cached result comes back in the order of its names: so that equal runs write equal files.
    ordered = dict(sorted(metrics.items()))
    beside = details.get("window_kl", []), details.get("samples", [])
    return Measured(ordered, own, details["tokens_sha256"], scores, inputs, *beside)


@contextlib.contextmanager
def opened(addresses: list[str], request: EvaluationRequest) -> Iterator[list[MeasuredModel]]:
    """Yield the models at some addresses.

    Raises:
        InputError: One of them is not there.
    """
    with keys_called(OPTIONS), contextlib.ExitStack() as stack:
        device = resolve_device(request.device)
        yield [
            stack.enter_context(measured_model(address, request.dtype, device))
            for address in addresses
        ]


def common_text(models: list[MeasuredModel], request: EvaluationRequest) -> Text:
    """Return the text that all of some models are measured on.

    Raises:
        InputError: There is none, a window is longer than the context of one of the models, or the
            text or an item has tokens that one of them has no embedding for.
    """
    contexts = [model.context for model in models if model.context is not None]
    context = min(contexts) if contexts else None
    config = request.evaluation.perplexity
    with keys_called(OPTIONS):
        text = text_of(config, models[-1].text_source, effective_length(None, context), context)
    for model in models:
        if model.subject.path.is_dir():  # of a GGUF file the first stage tells
            place, tokenizer = model.subject.path, model.subject.tokenizer_path
            check_tokens(place, None, request.evaluation, tokenizer, [text.path])
    return text


def with_sizes(measured: Measured, model: MeasuredModel) -> Measured:
    """Return an evaluation with the size of its model."""
    sizes = {"size_bytes": float(model.size_bytes)}
    if model.bits_per_weight is not None:
        sizes["bits_per_weight"] = model.bits_per_weight
    return Measured(**{**vars(measured), "metrics": measured.metrics | sizes})
