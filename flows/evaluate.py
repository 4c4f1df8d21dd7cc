"""The flow of `normtweak evaluate`: one model, by itself or beside its float model."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.budget import peak_rss_bytes
from flows.evaluate_request import OPTIONS, EvaluationRequest, check_request
from flows.evaluating import Measured, measure_alone, measure_pair
from flows.evaluation_page import evaluation_page
from flows.evaluation_report import write_evaluation
from flows.known_tokens import check_tokens
from flows.measured_models import MeasuredModel, measured_model
from flows.operated import operated
from flows.page_link import PAGE, publish_page
from flows.run_name import run_name
from flows.running import Stages
from normtweak_core.calibration.length import effective_length
from normtweak_core.errors import keys_called
from normtweak_core.model.source import resolve_device
from tasks.artifacts import write_atomically
from tasks.environment import state_root
from tasks.evaluating import Text, text_of
from tasks.root_layout import EVALUATIONS
from tasks.task_scoring import items_of


@flow(
    name="evaluate", flow_run_name=run_name("evaluate {request.models}"), validate_parameters=True
)
@operated
def evaluate(request: EvaluationRequest) -> dict[str, Any]:
    """Measure a model on a text and on named tasks, beside its float model if one is given.

    Args:
        request: The model, and what to measure on.
    """
    began = time.monotonic()
    check_request(request, state_root(), None)
    run = Stages(began)
    with opened(addresses_of(request), request) as models:
        subjects = [model.subject for model in models]
        measured = measure_model(run, request, models)
    names = [subject.sha256[:12] for subject in subjects]  # the model, and what it is beside
    folder = state_root() / EVALUATIONS / "-beside-".join(names) / measured.measured_on[:12]
    result = {
        "model": request.models[0],
        "against": request.against,
        "metrics": measured.metrics,
        "settings": measured.settings() | {"dtype": subjects[0].dtype},
    }
    files = write_evaluation(folder, measured, 0, request.models[0], request.against)
    page = folder / PAGE
    beside_bytes = float(models[1].size_bytes) if request.against else None
    write_atomically(page, evaluation_page(result, beside_bytes).encode())
    publish_page("evaluation", page)
    return result | {
        "files": [str(file) for file in [*files, page]],
        "cached": run.cached,
        "seconds": time.monotonic() - began,
        "peak_rss_bytes": peak_rss_bytes(),
        "flow_run_id": str(flow_run.id),
    }


def addresses_of(request: EvaluationRequest) -> list[str]:
    """Return the model to measure and the one beside it, if any."""
    return [request.models[0], *([request.against] if request.against else [])]


def measure_model(run: Stages, request: EvaluationRequest, models: list[MeasuredModel]) -> Measured:
    """Return how the first of one or two models does, beside the second where there is one."""
    text = common_text(models, request)
    items = items_of(request.evaluation)
    subjects = [model.subject for model in models]
    if len(models) == 1:
        return with_sizes(measure_alone(run, text, items, subjects[0]), models[0])
    names = (f"evaluate {subjects[0].name}", f"evaluate {subjects[1].name}")
    return with_sizes(measure_pair(run, text, items, *subjects, names), models[0])


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
