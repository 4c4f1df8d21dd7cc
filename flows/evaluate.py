"""The flow of `normtweak evaluate`: one model, by itself or beside its float model."""

import time
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.checks.evaluation import check_request
from flows.pipeline.measuring import common_text, measure_alone, measure_pair, opened, with_sizes
from flows.pipeline.operated import operated
from flows.pipeline.run import Stages
from flows.pipeline.run_name import run_name
from flows.recipes.evaluation import EvaluationRequest
from flows.reports.evaluation import evaluation_report
from flows.reports.publish import publish
from flows.reports.results import Measured, write_evaluation
from tasks.engine.environment import peak_rss_bytes, state_root
from tasks.engine.root_layout import EVALUATIONS
from tasks.models.addresses import MeasuredModel
from tasks.stages.score import items_of


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
    beside_bytes = float(models[1].size_bytes) if request.against else None
    files += publish(evaluation_report(folder, result, beside_bytes))
    return result | {
        "files": [str(file) for file in files],
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
