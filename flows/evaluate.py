"""The flow of `normtweak evaluate`: one model, by itself or beside its float model."""

from typing import Any

from prefect import flow

from flows.checks.evaluation import check_request
from flows.pipeline.declared import Pipeline
from flows.pipeline.execution import Execution
from flows.pipeline.measuring import (
    Measuring,
    called,
    measured,
    measured_alone,
    measured_beside,
    measuring,
    opened,
    scored,
    with_sizes,
)
from flows.pipeline.operated import operated
from flows.pipeline.run_name import run_name
from flows.recipes.evaluation import EvaluationRequest
from flows.reports.evaluation import evaluation_report
from flows.reports.publish import publish
from flows.reports.results import Measured, write_evaluation
from tasks.engine.environment import state_root
from tasks.engine.root_layout import EVALUATIONS

ALONE = Pipeline("evaluate", measured_alone(0))
# The float model comes second, and is measured first.
BESIDE = Pipeline(
    "evaluate",
    (*measured_alone(1), measured_beside(0, 1, called(0)), scored("model 0 beside 1", 0)),
)


@flow(
    name="evaluate", flow_run_name=run_name("evaluate {request.models}"), validate_parameters=True
)
@operated
def evaluate(request: EvaluationRequest) -> dict[str, Any]:
    """Measure a model on a text and on named tasks, beside its float model if one is given.

    Args:
        request: The model, and what to measure on.
    """
    check_request(request, state_root(), None)
    execution = Execution()
    addresses = [request.models[0], *([request.against] if request.against else [])]
    with opened(addresses, request) as models:
        work = measuring(models, request)
        found = measure_model(work, execution)
    subjects = work.subjects
    names = [subject.sha256[:12] for subject in subjects]  # the model, and what it is beside
    folder = state_root() / EVALUATIONS / "-beside-".join(names) / found.measured_on[:12]
    result = {
        "model": request.models[0],
        "against": request.against,
        "metrics": found.metrics,
        "settings": found.settings() | {"dtype": subjects[0].dtype},
    }
    files = write_evaluation(folder, found, 0, request.models[0], request.against)
    beside_bytes = float(models[1].size_bytes) if request.against else None
    files += publish(evaluation_report(folder, result, beside_bytes))
    return result | {"files": [str(file) for file in files], "cached": execution.cached}


def measure_model(work: Measuring, execution: Execution) -> Measured:
    """Return how the first of one or two models does, beside the second where there is one."""
    pipeline, names = (ALONE, ("model 0",))
    if len(work.models) > 1:
        pipeline, names = (BESIDE, ("model 0 beside 1", "model 1"))
    found = pipeline.walk(work, execution.visit)
    return with_sizes(measured(work, found, *names), work.models[0])
