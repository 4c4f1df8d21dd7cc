"""The flow of `normtweak compare`: several models on the same tokens and items, in pairs."""

import hashlib
import itertools
import json
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
    with_sizes,
)
from flows.pipeline.operated import operated
from flows.pipeline.run_name import run_name
from flows.recipes.evaluation import EvaluationRequest
from flows.reports.comparison import comparison_report
from flows.reports.publish import publish
from flows.reports.results import Measured
from normtweak_core.evaluate.metric import read_metrics
from normtweak_core.evaluate.scores import Estimate, named
from normtweak_core.evaluate.task_scores import TaskComparison
from tasks.engine.environment import state_root
from tasks.engine.root_layout import EVALUATIONS

# What a pair measurement adds to the two models' own numbers.
BETWEEN = ("kl/", "kl_reverse/", "top1_agreement")


@flow(name="compare", flow_run_name=run_name("compare {request.models}"), validate_parameters=True)
@operated
def compare(request: EvaluationRequest) -> dict[str, Any]:
    """Measure several models on the same text and tasks, and every pair of them in pairs.

    Divergences are those from the first model.

    Args:
        request: The models, and what to measure on.
    """
    check_request(request, state_root(), None)
    execution = Execution()
    with opened(request.models, request) as models:
        result = compare_models(measuring(models, request), request, execution)
    files = _write(result)
    return result | {"files": files, "cached": execution.cached}


def compared(count: int) -> Pipeline:
    """Return the pipeline that measures so many models by themselves, and beside the first."""
    alone = [stage for place in range(count) for stage in measured_alone(place)]
    beside = [
        measured_beside(place, 0, called(place, 0, text="{} beside {}"))
        for place in range(1, count)
    ]
    return Pipeline("compare", (*alone, *beside))


def compare_models(
    work: Measuring, request: EvaluationRequest, execution: Execution
) -> dict[str, Any]:
    """Return the numbers of several models and of every pair of them, and what they are of."""
    count = len(work.models)
    found = compared(count).walk(work, execution.visit)
    alone = [
        with_sizes(measured(work, found, f"model {place}"), model)
        for place, model in enumerate(work.models)
    ]
    beside_first = {
        place: measured(work, found, f"model {place} beside 0", "model 0")
        for place in range(1, count)
    }
    pairs = [
        _pair(request.models, alone, first, second, beside_first.get(second) if not first else None)
        for first, second in itertools.combinations(range(count), 2)
    ]
    return _result(request, alone, pairs)


def _result(
    request: EvaluationRequest, alone: list[Measured], pairs: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "models": [
            {
                "name": address,
                "address": address,
                "size_bytes": one.metrics["size_bytes"],
                "bits_per_weight": one.metrics.get("bits_per_weight"),
                "metrics": _own(one.metrics),
            }
            for address, one in zip(request.models, alone, strict=True)
        ],
        "pairs": pairs,
        "settings": {key: value for key, value in alone[0].settings().items() if key != "versions"}
        | {"dtype": request.dtype},
        "environment": alone[0].settings()["versions"],
    }


def _own(metrics: dict[str, float]) -> dict[str, float]:
    """Return a model's own numbers without the word that tells two models apart elsewhere."""
    return {name.replace("/float", ""): value for name, value in metrics.items()}


def _pair(
    addresses: list[str],
    alone: list[Measured],
    first: int,
    second: int,
    beside: Measured | None,
) -> dict[str, Any]:
    """Return how the second of two models differs from the first, on the same windows and items."""
    differences = [
        b - a for a, b in zip(alone[first].window_nll, alone[second].window_nll, strict=True)
    ]
    metrics = named("nll_difference", Estimate.of(differences), "/mean")
    metrics |= named("perplexity/ratio", Estimate.of(differences).exp())
    if beside is not None:
        metrics |= {k: v for k, v in beside.metrics.items() if k.startswith(BETWEEN)}
    for task, scores in alone[first].scores.items():
        both = TaskComparison(float_scores=scores, quantized_scores=alone[second].scores[task])
        for metric in read_metrics(both.metrics()).values():
            if metric.of in ("drop", "mcnemar_p"):
                metrics |= metric.named()
    return {"first": addresses[first], "second": addresses[second], "metrics": metrics}


def _write(result: dict[str, Any]) -> list[str]:
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    folder = (
        state_root() / EVALUATIONS / f"compare-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    )
    return [str(file) for file in publish(comparison_report(folder, result))]
