"""What is told of an evaluation wherever one is told: tiles and tables."""

from collections.abc import Mapping
from typing import Any

from flows.reports.document import Cell, Table, Tile, measured, number, written
from normtweak_core.evaluate.metric import Metric, read_metrics

# Two numbers nearer than this, as a fraction, are one: half precision moves the perplexity of the
# reference models by 1e-5 to 1e-4 and their KL by up to 0.5 %.
SAME = 1e-2


def quality_tiles(metrics: Mapping[str, float], beside: str = "float model") -> list[Tile]:
    """Return what two models differ by, to be seen first, a tile a measure."""
    found = read_metrics(metrics)
    own, whole = found["perplexity/quantized"], found["perplexity/float"]
    ratio = written(metrics["perplexity/ratio"] - 1, "+.1%")
    tiles = [
        _tile("Perplexity", own, ".3f", f"{beside} {measured(whole, '.3f').text}, {ratio}"),
        _tile("KL divergence", found["kl/mean"], ".4f", f"nats per token, from the {beside}"),
        _tile("Same first choice", found["top1_agreement"], ".1%", "of positions"),
    ]
    for name, whole, own, _, p in _accuracies(found):
        note = f"{beside} {measured(whole, '.1%').text}, McNemar p {p:.2g}"
        tiles.append(_tile(name, own, ".1%", note))
    return tiles


def _tile(label: str, metric: Metric, form: str, note: str) -> Tile:
    error = "" if metric.stderr is None else written(metric.stderr, form)
    return Tile(label, written(metric.value, form), note, error=error)


def _accuracies(found: Mapping[str, Metric]) -> list[tuple[str, Metric, Metric, Metric, float]]:
    """Return name, float accuracy, own accuracy, drop and p-value of every task."""
    names = [one.name for one in found.values() if one.is_accuracy and one.of == "float"]
    return [
        (
            name,
            *(found[f"{name}/{of}"] for of in ("float", "quantized", "drop")),
            found[f"{name}/mcnemar_p"].value,
        )
        for name in names
    ]


def result_rows(found: Mapping[str, Metric]) -> list[tuple[Cell | str, ...]]:
    """Return the metrics of an evaluation as rows: what, float, quantized, difference."""

    def cell(name: str, form: str = ".3f") -> Cell:
        return measured(found.get(name), form)

    ratio, size = cell("perplexity/ratio"), found["size_bytes"].value
    rows: list[tuple[Cell | str, ...]] = [
        (
            "perplexity",
            cell("perplexity/float"),
            cell("perplexity/quantized"),
            Cell(f"{ratio.text} times", ratio.number),
        ),
        (
            "loss (nats per token)",
            cell("nll/float"),
            cell("nll/quantized"),
            cell("nll_difference/mean", "+.3f"),
        ),
        ("KL divergence (nats per token)", "", cell("kl/mean", ".4f"), ""),
        ("the other way", "", cell("kl_reverse/mean", ".4f"), ""),
        ("same first choice", "", cell("top1_agreement", ".1%"), ""),
    ]
    for what, name in (("perplexity", "perplexity/quantized"), ("KL divergence", "kl/mean")):
        plain, own = found.get(f"{name}_float32"), found[name].value
        if plain is not None and abs(plain.value - own) > SAME * abs(own):
            own_less = number(plain.value - own, "+.4f")
            rows.append((f"{what}, if computed in float32", "", number(plain.value), own_less))
    for name, whole, own, drop, p in _accuracies(found):
        change = number(-drop.value, "+.1%", drop.stderr)
        told = Cell(f"{change.text} (p {p:.3g})", change.number)
        rows.append((name, measured(whole, ".1%"), measured(own, ".1%"), told))
    return [
        *rows,
        ("size", "", Cell(f"{size / 1e6:,.2f} MB", size), ""),
        ("bits per weight", "", cell("bits_per_weight"), ""),
    ]


def metrics_table(metrics: Mapping[str, float]) -> Table:
    """Return flat metrics with their standard errors."""
    rows = [
        (name, number(one.value, ".6g"), number(one.stderr, ".3g"))
        for name, one in read_metrics(metrics).items()
    ]
    return Table(("measure", "value", "standard error"), rows)


def measured_on(settings: dict[str, Any], tokens: float) -> str:
    """Return how much text and how many items an evaluation rests on."""
    text = f"{tokens:,.0f} tokens in {settings['windows']} windows"
    tasks = [f"{one['items']} items of {task}" for task, one in settings["tasks"].items()]
    return ", ".join([text, *tasks])
