"""What the page of every run has: result, gate, size, text, recipe, origin, versions."""

from collections.abc import Sequence
from typing import Any

import yaml

from flows.reports.html import (
    Code,
    Column,
    Drawing,
    Points,
    Section,
    Table,
    Tile,
    Words,
    drawing,
    environment,
    environment_section,
    facts_table,
    number,
)
from flows.reports.words import VERDICTS, calibration_rows, percent, precision, windows_of
from normtweak_core.evaluate.gate import GateConfig, gate_failures
from tasks.engine.progress import readable_bytes
from tasks.tables.evaluation import stderr_name

MEASURES = (Column("measure", numbers=False), Column("value"), Column("standard error"))
SIZES = "Size counts weights, configuration and tokenizer; a model on the front is beaten by none."


def result_tiles(reports: Any) -> list[Tile]:
    """Return what is to be seen first of a run.

    Args:
        reports: Of any flow that makes an export: recipe, metrics, float_bytes, problems(),
            notes().
    """
    metrics = reports.metrics
    ratio, size = metrics["perplexity/ratio"], metrics["size_bytes"]
    failures = gate_failures(reports.recipe.gate, metrics)
    asked = _thresholds(reports.recipe.gate)
    problems, notes = len(reports.problems()), len(reports.notes())
    return [
        Tile(
            "Perplexity",
            f"{metrics['perplexity/quantized']:.3f}",
            f"float {metrics['perplexity/float']:.3f}, {percent(ratio - 1, signed=True)}",
        ),
        Tile("KL divergence", f"{metrics['kl/mean']:.4f}", "nats per token, from the float model"),
        Tile("Same first choice", percent(metrics["top1_agreement"]), "of positions"),
        Tile(
            "Size",
            readable_bytes(size),
            f"float {readable_bytes(reports.float_bytes)}, {reports.float_bytes / size:.2f} times; "
            f"{metrics['bits_per_weight']:.3f} bits per weight",
        ),
        Tile(
            "Gate",
            ("failed" if failures else "passed") if asked else "not set",
            f"missed: {len(failures)} of {len(asked)}" if failures else "",
            ("bad" if failures else "good") if asked else "",
        ),
        Tile(
            "Problems",
            str(problems) if problems else "none",
            f"and notes: {notes}" if notes else "",
            "bad" if problems else "",
        ),
    ]


def result_section(
    reports: Any, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], more: str = ""
) -> Section:
    """Return the part of a page about the evaluation.

    Args:
        reports: Of any flow that makes an export.
        columns: Head of the table, the first of them, of what is measured, without a name.
        rows: Of the table.
        more: A sentence behind the others.
    """
    heads = [Column("measure", numbers=False), *map(Column, columns[1:])]
    tokens = f"On {reports.metrics['tokens']:,.0f} predicted tokens{precision(reports.metrics)}."
    return Section("Result", [Table(heads, rows, sorts=False), Words(tokens + more)])


def size_section(points: Sequence[tuple[str, float, dict[str, float], str]]) -> Section:
    """Return quality against size.

    Args:
        points: Name, bytes, metrics, and what the metric of its perplexity is called.
    """
    return Section("Quality against size", [size_drawing(points)])


def size_drawing(points: Sequence[tuple[str, float, dict[str, float], str]]) -> Drawing:
    """Return the picture of quality against size; arguments as `size_section`."""
    from flows.reports.figures.pareto import Candidate, pareto_front, size_quality_figure

    candidates = [
        Candidate(name, size, metrics[measure], metrics.get(stderr_name(measure)))
        for name, size, metrics, measure in points
    ]
    front = [candidates[index].name for index in pareto_front(candidates)]
    bars = "Bars are one standard error. " if any(one.error for one in candidates) else ""
    return drawing(
        size_quality_figure(candidates, "perplexity"),
        "pareto",
        f"Perplexity against size; both are better the smaller. {bars}{SIZES} On it: "
        f"{', '.join(front)}.",
    )


def outcome_section(reports: Any, stages: Sequence[tuple[str, str]]) -> Section:
    """Return what became of the stages and the gate of a run, its problems and notes."""
    gate = reports.recipe.gate
    failures = gate_failures(gate, reports.metrics)
    asked = _thresholds(gate)
    parts: list[Any] = [facts_table(stages, "stage")] if stages else []
    if asked:
        parts.append(facts_table(asked, "threshold of the gate"))
        words = "The gate failed:" if failures else "The gate passed: every threshold is kept."
        parts.append(Words(words))
    else:
        parts.append(Words("The recipe sets no threshold for the gate."))
    if failures:
        parts.append(Points(failures))
    problems = reports.problems()
    parts.append(Words("Problems:" if problems else "No problems."))
    if problems:
        parts.append(Points(problems))
    if notes := reports.notes():
        parts += [Words("Notes, which ask for nothing:"), Points(notes)]
    return Section("Stages, gate and problems", parts)


def text_section(quality: dict[str, Any], seed: int, title: str) -> Section:
    """Return the part of a page about the text that was calibrated with or trained on."""
    about = f"{windows_of(quality)}, source {quality['source']}, seed {seed}."
    verdict = f"Verdict: {VERDICTS[quality['verdict']]}."
    parts: list[Any] = [Words(f"{about} {verdict}")]
    if quality["reasons"]:
        parts.append(Points(quality["reasons"]))
    return Section(title, [*parts, facts_table(calibration_rows(quality))])


def closing_sections(reports: Any) -> list[Section]:
    """Return every number of the evaluation, the recipe, the origin and the versions."""
    recipe = yaml.safe_dump(reports.recipe.model_dump(mode="json"), sort_keys=False)
    return [
        Section("All numbers", [metrics_table(reports.metrics)]),
        Section("Recipe", [Code(recipe, "The recipe as YAML")]),
        Section("Origin", [facts_table(sorted(reports.lineage().items()), "tag")]),
        environment_section(environment()),
    ]


def metrics_table(metrics: dict[str, float]) -> Table:
    """Return flat metrics with their standard errors."""
    rows = [
        (name, number(value, ".6g"), number(metrics.get(stderr_name(name)), ".3g"))
        for name, value in metrics.items()
        if not name.endswith("stderr")
    ]
    return Table(MEASURES, rows)


def _thresholds(gate: GateConfig) -> dict[str, str]:
    """Return what a gate asks for, by name; empty: nothing."""
    values = gate.model_dump()
    drops, confidence = values.pop("max_accuracy_drop"), values.pop("confidence")
    asked = {name: f"{value:g}" for name, value in values.items() if value is not None}
    return asked | {
        f"max_accuracy_drop: {task}": f"{drop:g} with confidence {confidence:g}"
        for task, drop in drops.items()
    }
