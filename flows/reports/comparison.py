"""The page of a comparison: every model, quality against size, and every pair of models."""

import json
import math
from pathlib import Path
from typing import Any

from flows.reports.html import (
    Cell,
    Code,
    Column,
    Page,
    Section,
    Table,
    Tile,
    Words,
    environment_section,
    number,
    page_html,
)
from flows.reports.run import size_drawing
from tasks.engine.progress import readable_bytes
from tasks.tables.evaluation import stderr_name

# Told in columns of their own, or the same for all.
ELSEWHERE = ("tokens", "size_bytes", "bits_per_weight")
PATHS = ("/", "./", "../", "~")
PAIRED = (
    "What the second model has and the first has not, on the same windows and items: a positive "
    "loss difference or drop says that the second is worse. ± is one paired standard error; "
    "mcnemar_p is the p-value of McNemar's exact test on the items where the two differ. Cells "
    "without a number were not measured for that pair."
)


def comparison_page(result: dict[str, Any]) -> str:
    """Return the page of a comparison as one HTML file; equal results give equal text.

    Args:
        result: ``models``: name, address, size_bytes, bits_per_weight or None, and flat metrics,
            ``perplexity`` among them; ``pairs``: first, second, and flat metrics of the second
            beside the first; ``settings``: plain values; ``environment``: versions by name.
    """
    models, pairs = _with_short_names(result)
    points = [
        (model["name"], model["size_bytes"], model["metrics"], "perplexity") for model in models
    ]
    sections = [
        Section("Models", [_models_table(models), Words("± is one standard error.")]),
        Section("Quality against size", [size_drawing(points)]),
        Section("Pairs", [Words(PAIRED), _pairs_table(pairs)]),
        Section("Settings", [Code(_json(result["settings"]), "The settings as JSON")]),
        environment_section(result["environment"]),
    ]
    title = f"{len(models)} models compared"
    lead = ", ".join(model["name"] for model in models)
    return page_html(Page("Comparison", title, lead, _tiles(models), sections))


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
    measured = _Measured([model["metrics"] for model in models])
    columns = [
        Column("model", numbers=False),
        Column("address", numbers=False),
        Column("MB"),
        Column("bits per weight"),
        *map(Column, measured.names),
    ]
    if all(model["name"] == model["address"] for model in models):
        columns.pop(1)
    rows = []
    for model in models:
        told = (Cell(model["name"]), Cell(model["address"]))
        rows.append(
            (
                *(told if columns[1].title == "address" else told[:1]),
                number(model["size_bytes"] / 1e6, ",.2f"),
                number(model["bits_per_weight"], ".3f"),
                *measured.cells(model["metrics"]),
            )
        )
    return Table(columns, rows, "Every model by itself")


def _pairs_table(pairs: list[dict[str, Any]]) -> Table:
    measured = _Measured([pair["metrics"] for pair in pairs])
    columns = [
        Column("first", numbers=False),
        Column("second", numbers=False),
        *(Column(name.removesuffix("/mean")) for name in measured.names),
    ]
    rows = [(pair["first"], pair["second"], *measured.cells(pair["metrics"])) for pair in pairs]
    return Table(columns, rows, "Every pair of models")


class _Measured:
    """Every value of some rows, each with its standard error, written alike in a column."""

    def __init__(self, rows: list[dict[str, float]]):
        found = dict.fromkeys(name for row in rows for name in row)
        self.names = [
            name for name in found if not name.endswith("stderr") and name not in ELSEWHERE
        ]
        self._forms = {name: _form(name, rows) for name in self.names}

    def cells(self, metrics: dict[str, float]) -> list[Cell]:
        """Return the cells of a row; a value that it lacks is an empty one."""
        return [
            number(metrics.get(name), self._forms[name], metrics.get(stderr_name(name)))
            for name in self.names
        ]


def _form(name: str, rows: list[dict[str, float]]) -> str:
    """Return how a column is written: at least two digits of its smallest error are seen."""
    if name.endswith("mcnemar_p"):
        return ".3g"
    errors = [row[stderr_name(name)] for row in rows if row.get(stderr_name(name))]
    digits = 1 - math.floor(math.log10(min(errors))) if errors else 4
    signed = "difference" in name or name.endswith("/drop")
    return f"{'+' if signed else ''}.{min(max(digits, 4), 8)}f"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
