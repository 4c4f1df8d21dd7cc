"""What flows measure: a text in pairs, and named tasks, of a model beside its float model."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flows.checks.known_tokens import check_tokens
from flows.recipes.evaluation import OPTIONS, EvaluationRequest
from flows.reports.results import Measured
from normtweak_core.calibration.length import effective_length
from normtweak_core.errors import keys_called
from normtweak_core.evaluate.task_scores import TaskComparison, TaskScores
from normtweak_core.model.source import resolve_device
from tasks.engine.artifacts import read_json
from tasks.engine.progress import Progress
from tasks.engine.stage import Found, Stage
from tasks.models.addresses import MeasuredModel, measured_model
from tasks.models.measured_on import Items, Text, items_of, text_of
from tasks.models.subjects import Subject, export_subject, float_subject
from tasks.results import Evaluation
from tasks.stages.evaluate import alone, pair
from tasks.stages.score import scores


def float_model(work: Any, found: Found) -> Subject:
    """Return the float model of a run."""
    return float_subject(work.job)


def export_called(name: str) -> Callable[[Any, Found], Subject]:
    """Return what gives an export of a run.

    Args:
        name: Under which it is found.
    """

    def model(work: Any, found: Found) -> Subject:
        one = found[name]
        return export_subject(work.job, getattr(one, "export", one))

    return model


def beside_float(name: str, export: str) -> tuple[Stage, ...]:
    """Return the stages that measure an export beside the float model, on text and tasks.

    Args:
        name: Of the first; the tasks are called after it.
        export: Under which name the export is found.
    """
    model, needs = export_called(export), (export,)
    return pair(name, model, float_model, needs=needs), scores(name, model, needs=needs)


FLOAT = "evaluate float"
EVALUATE_FLOAT = alone(FLOAT, float_model)
# Before the long work: what cannot be scored, such as an answer longer than the context.
SCORE_FLOAT = scores(FLOAT, float_model)


def measured(work: Any, found: Found, name: str, beside: str | None = None) -> Measured:
    """Return what the stages of `beside_float`, or of `measuring`, have found of a model.

    Args:
        work: Knows text and tasks.
        found: Holds the results.
        name: Of the stage that measured the model.
        beside: Of the one that measured its float model; None: the model is measured alone.
    """
    one: Evaluation = found[name]
    metrics, own = dict(one.metrics), _scores(found, name)
    if beside is None:
        for score in own.values():
            metrics |= score.metrics("float")
    else:
        metrics |= found[beside].metrics
        expected = _scores(found, beside)
        for task, score in own.items():
            both = TaskComparison(float_scores=expected[task], quantized_scores=score)
            metrics |= both.metrics()
    details = read_json(one.details)
    inputs = work.text.inputs()
    if own:
        inputs |= {"tasks": [items.inputs() for items in work.items]}
    return Measured(
        # A cached result comes back in the order of its names: so that equal runs write equal
        # files.
        dict(sorted(metrics.items())),
        details.get("quantized_result", details)["window_nll"],
        details["tokens_sha256"],
        own,
        inputs,
        details.get("window_kl", []),
        details.get("samples", []),
    )


def _scores(found: Found, name: str) -> dict[str, TaskScores]:
    done = found.get(f"{name} tasks", [])
    return {one.task: TaskScores.model_validate(read_json(one.scores)) for one in done}


@dataclass
class Measuring:
    """Models at addresses, and what they are measured on."""

    models: list[MeasuredModel]
    text: Text
    items: list[Items]
    progress: Progress = field(default_factory=Progress, kw_only=True)
    modules: set[str] = field(default_factory=set, kw_only=True)

    @property
    def subjects(self) -> list[Subject]:
        """The models as stages see them."""
        return [model.subject for model in self.models]

    @property
    def device(self) -> str:
        """The device that stages compute on."""
        return self.models[0].subject.device

    @property
    def threads(self) -> int:
        """Threads that share the arithmetic."""
        return int(os.environ["OMP_NUM_THREADS"])


def at(place: int) -> Callable[[Any, Found], Subject]:
    """Return what gives the model at a place of the models that are measured."""
    return lambda work, found: work.subjects[place]


def called(*places: int, text: str = "evaluate {}") -> Callable[[Any, Any], str]:
    """Return what people call the measurement of the models at some places."""

    def label(work: Any, items: Items | None) -> str:
        name = text.format(*(work.subjects[place].name for place in places))
        return name if items is None else f"{name}: {items.task}"

    return label


def scored(name: str, place: int) -> Stage:
    """Return the stage that scores one of several models on tasks."""
    return scores(name, at(place), label=called(place))


def measured_alone(place: int) -> tuple[Stage, ...]:
    """Return the stages that measure one of several models by itself, on text and tasks."""
    name = f"model {place}"
    return alone(name, at(place), label=called(place)), scored(name, place)


def measured_beside(place: int, beside: int, label: Callable[[Any, Any], str]) -> Stage:
    """Return the stage that measures one of several models beside another, on the text."""
    return pair(f"model {place} beside {beside}", at(place), at(beside), label=label)


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


def measuring(models: list[MeasuredModel], request: EvaluationRequest) -> Measuring:
    """Return models with the text and the items that all of them are measured on.

    Raises:
        InputError: There is no text, a window is longer than the context of one of the models, or
            the text or an item has tokens that one of them has no embedding for.
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
    return Measuring(models, text, items_of(request.evaluation))


def with_sizes(found: Measured, model: MeasuredModel) -> Measured:
    """Return an evaluation with the size of its model."""
    sizes = {"size_bytes": float(model.size_bytes)}
    if model.bits_per_weight is not None:
        sizes["bits_per_weight"] = model.bits_per_weight
    return Measured(**{**vars(found), "metrics": found.metrics | sizes})
