"""What is told of an evaluation: one model by itself, or beside the model it is compared with."""

import json
from pathlib import Path
from typing import Any

from flows.reports.document import (
    Code,
    Document,
    Section,
    Tile,
    environment_section,
    measured,
)
from flows.reports.figures.pareto import size_section
from flows.reports.measures import measured_on, metrics_table, quality_tiles
from flows.reports.publish import Report
from normtweak_core.evaluate.metric import read_metrics
from tasks.engine.progress import readable_bytes

PAIRED = (
    "Both models on the same windows and items: a positive loss difference or drop says that the "
    "model is worse than the one beside it. KL is from the one beside it, kl_reverse to it; "
    "mcnemar_p is the p-value of McNemar's exact test on the items where the two differ."
)


def evaluation_report(folder: Path, result: dict[str, Any], beside_bytes: float | None) -> Report:
    """Return an evaluation as it is written and shown; its tables are files of their own.

    Args:
        folder: Where its page goes.
        result: ``model``, ``against`` or None, flat ``metrics`` and ``settings``, as the flow
            returns them.
        beside_bytes: Size of the model it is beside; None: there is none.
    """
    # By name: a result from the cache tells its metrics in another order than a fresh one.
    metrics, beside = dict(sorted(result["metrics"].items())), result["against"]
    sections = [Section("Result", [metrics_table(metrics), *([PAIRED] if beside else [])])]
    if beside is not None and beside_bytes is not None:
        found = read_metrics(metrics)
        models = [
            (beside, beside_bytes, found["perplexity/float"]),
            (result["model"], metrics["size_bytes"], found["perplexity/quantized"]),
        ]
        sections.append(size_section(models))
    settings = json.dumps(result["settings"], indent=2, ensure_ascii=False)
    sections += [
        Section("Settings", [Code(settings, "The settings as JSON")]),
        environment_section(),
    ]
    lead = f"Measured on {measured_on(result['settings'], metrics['tokens'])}"
    lead += f", beside {beside}." if beside else "."
    tiles = _tiles(metrics, beside is not None)
    document = Document("Evaluation", result["model"], lead, tiles, sections)
    return Report("evaluation", folder, document, {})


def _tiles(metrics: dict[str, float], beside: bool) -> list[Tile]:
    bits = metrics.get("bits_per_weight")
    note = "" if bits is None else f"{bits:.3f} bits per weight"
    sized = Tile("Size", readable_bytes(metrics["size_bytes"]), note)
    if beside:
        return [*quality_tiles(metrics, "model beside it"), sized]
    perplexity = measured(read_metrics(metrics)["perplexity/float"], ".3f")
    return [Tile("Perplexity", perplexity.text), sized]
