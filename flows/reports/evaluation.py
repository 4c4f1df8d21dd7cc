"""The page of an evaluation: one model by itself, or beside the model it is compared with."""

import json
from typing import Any

from flows.reports.evaluation_summary import measured_on
from flows.reports.html import (
    Code,
    Page,
    Section,
    Tile,
    Words,
    environment,
    environment_section,
    page_html,
)
from flows.reports.run import metrics_table, size_section
from flows.reports.words import percent
from tasks.engine.progress import readable_bytes

PAIRED = (
    "Both models on the same windows and items: a positive loss difference or drop says that the "
    "model is worse than the one beside it. KL is from the one beside it, kl_reverse to it; "
    "mcnemar_p is the p-value of McNemar's exact test on the items where the two differ."
)


def evaluation_page(result: dict[str, Any], beside_bytes: float | None) -> str:
    """Return the page of an evaluation as one HTML file; equal results give equal text.

    Args:
        result: ``model``, ``against`` or None, flat ``metrics`` and ``settings``, as the flow
            returns them.
        beside_bytes: Size of the model it is beside; None: there is none.
    """
    # By name: a result from the cache tells its metrics in another order than a fresh one.
    metrics, beside = dict(sorted(result["metrics"].items())), result["against"]
    sections = [Section("Result", [metrics_table(metrics), *([Words(PAIRED)] if beside else [])])]
    if beside is not None and beside_bytes is not None:
        points = [
            (beside, beside_bytes, metrics, "perplexity/float"),
            (result["model"], metrics["size_bytes"], metrics, "perplexity/quantized"),
        ]
        sections.append(size_section(points))
    settings = json.dumps(result["settings"], indent=2, ensure_ascii=False)
    sections += [
        Section("Settings", [Code(settings, "The settings as JSON")]),
        environment_section(environment()),
    ]
    lead = f"Measured on {measured_on(result['settings'], metrics['tokens'])}"
    lead += f", beside {beside}." if beside else "."
    return page_html(Page("Evaluation", result["model"], lead, _tiles(metrics, beside), sections))


def _tiles(metrics: dict[str, float], beside: str | None) -> list[Tile]:
    size = readable_bytes(metrics["size_bytes"])
    bits = metrics.get("bits_per_weight")
    sized = Tile("Size", size, "" if bits is None else f"{bits:.3f} bits per weight")
    if beside is None:
        return [Tile("Perplexity", f"{metrics['perplexity/float']:.3f}"), sized]
    return [
        Tile(
            "Perplexity",
            f"{metrics['perplexity/quantized']:.3f}",
            f"{metrics['perplexity/float']:.3f} beside it, "
            f"{percent(metrics['perplexity/ratio'] - 1, signed=True)}",
        ),
        Tile("KL divergence", f"{metrics['kl/mean']:.4f}", "nats per token"),
        Tile("Same first choice", percent(metrics["top1_agreement"]), "of positions"),
        sized,
    ]
