"""The page of a comparison: every model, quality against size, and every pair of models."""

import json
import math
from pathlib import Path
from typing import Any

from flows.reports.document import (
    Cell,
    Code,
    Document,
    Section,
    Table,
    Tile,
    environment_section,
    measured,
    number,
)
from flows.reports.figures.pareto import size_section
from flows.reports.publish import Report
from normtweak_core.evaluate.metric import Metric, read_metrics
from tasks.engine.progress import readable_bytes

# Told in columns of their own, or the same for all.
ELSEWHERE = ("tokens", "size_bytes", "bits_per_weight")
PATHS = ("/", "./", "../", "~")
PAIRED = (
    "What the second model has and the first has not, on the same windows and items: a positive "
    "loss difference or drop says that the second is worse. ± is one paired standard error; "
    "mcnemar_p is the p-value of McNemar's exact test on the items where the two differ. Cells "
    "without a number were not measured for that pair."
)


def comparison_report(folder: Path, result: dict[str, Any]) -> Report:
    """Return a comparison as it is written and shown.

    Args:
        folder: Where it goes.
        result: ``models``: name, address, size_bytes, bits_per_weight or None, and flat metrics,
            ``perplexity`` among them; ``pairs``: first, second, and flat metrics of the second
            beside the first; ``settings``: plain values; ``environment``: versions by name.
    """
    models, pairs = _with_short_names(result)
    points = [
        (model["name"], model["size_bytes"], read_metrics(model["metrics"])["perplexity"])
        for model in models
    ]
    settings = json.dumps(result["settings"], indent=2, ensure_ascii=False)
    sections = [
        Section("Models", [_models_table(models), "± is one standard error."]),
        size_section(points),
        Section("Pairs", [PAIRED, _pairs_table(pairs)]),
        Section("Settings", [Code(settings, "The settings as JSON")]),
        environment_section(result["environment"]),
    ]
    title = f"{len(models)} models compared"
    lead = ", ".join(model["name"] for model in models)
    document = Document("Comparison", title, lead, _tiles(models), sections)
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    return Report("comparison", folder, document, {"comparison.json": text})


def _with_short_names(result: dict[str, Any]) -> tuple[list[dict], list[dict]]:
    """Return models and pairs, a folder called by its last part where that tells it apart."""
    names = [model["name"] for model in result["models"]]
    last = [Path(name).name if name.startswith(PATHS) else name for name in names]
    short = {
        name: end if last.count(end) == 1 else name for name, end in zip(names, last, strict=True)
    }
    models = [model | {"name": short[model["name"]]} for model in result["models"]]
    pairs = [
        pair | {"first": short[pair["first"]], "second": short[pair["second"]]}
        for pair in result["pairs"]
    ]
    return models, pairs


def _tiles(models: list[dict[str, Any]]) -> list[Tile]:
    best = min(models, key=lambda model: model["metrics"]["perplexity"])
    smallest = min(models, key=lambda model: model["size_bytes"])
    tiles = [
        Tile("Lowest perplexity", f"{best['metrics']['perplexity']:.3f}", best["name"]),
        Tile("Smallest", readable_bytes(smallest["size_bytes"]), smallest["name"]),
    ]
    tokens = {model["metrics"].get("tokens") for model in models} - {None}
    if len(tokens) == 1:
        tiles.append(Tile("Measured on", f"{tokens.pop():,.0f}", "predicted tokens"))
    return tiles


def _models_table(models: list[dict[str, Any]]) -> Table:
    heads, cells = _measures([model["metrics"] for model in models])
    addressed = any(model["name"] != model["address"] for model in models)
    named = ("model", "address")[: 1 + addressed]
    rows = [
        (
            *(model["name"], model["address"])[: 1 + addressed],
            number(model["size_bytes"] / 1e6, ",.2f"),
            number(model["bits_per_weight"], ".3f"),
            *line,
        )
        for model, line in zip(models, cells, strict=True)
    ]
    return Table([*named, "MB", "bits per weight", *heads], rows, "Every model by itself")


def _pairs_table(pairs: list[dict[str, Any]]) -> Table:
    heads, cells = _measures([pair["metrics"] for pair in pairs])
    rows = [(pair["first"], pair["second"], *line) for pair, line in zip(pairs, cells, strict=True)]
    return Table(["first", "second", *heads], rows, "Every pair of models")


def _measures(rows: list[dict[str, float]]) -> tuple[list[str], list[list[Cell]]]:
    """Return a head for every measure of some rows, and the cells; what a row lacks is empty."""
    read = [read_metrics(row) for row in rows]
    by_name: dict[str, list[Metric]] = {}
    for row in read:
        for name, metric in row.items():
            if name not in ELSEWHERE:
                by_name.setdefault(name, []).append(metric)
    forms = {name: _form(found) for name, found in by_name.items()}
    cells = [[measured(row.get(name), form) for name, form in forms.items()] for row in read]
    return [found[0].full_name for found in by_name.values()], cells


def _form(metrics: list[Metric]) -> str:
    """Return how a column is written: at least two digits of its smallest error are seen."""
    if metrics[0].of == "mcnemar_p":
        return ".3g"
    errors = [one.stderr for one in metrics if one.stderr]
    digits = 1 - math.floor(math.log10(min(errors))) if errors else 4
    signed = metrics[0].is_difference
    return f"{'+' if signed else ''}.{min(max(digits, 4), 8)}f"
