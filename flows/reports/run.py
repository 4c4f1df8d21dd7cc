"""What is told of every run that makes an export: result, gate, size, text, recipe, origin."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.recipes.file import recipe_sha256, recipe_yaml
from flows.reports.document import (
    Document,
    Section,
    Table,
    Tile,
    facts_table,
    recipe_sections,
    written,
)
from flows.reports.figures.pareto import Model, size_section
from flows.reports.measures import metrics_table, quality_tiles, result_rows
from flows.reports.publish import Report, Rows
from normtweak_core.evaluate.gate import GateConfig, gate_failures
from normtweak_core.evaluate.metric import read_metrics
from tasks.engine.progress import readable_bytes
from tasks.results import FloatType

FOLDER = "reports"
LONGEST_TAG = 4000  # characters; MLflow takes 5000
RESULT, OUTCOME = "Result", "Stages, gate and problems"

VERDICTS = {
    "ok": "usable: nothing suspicious was found",
    "warning": "used, with a warning",
    "refused": "not usable",
}


@dataclass(frozen=True, kw_only=True)
class RunReports:
    """What the reports of every run with an export are made of."""

    recipe: Any
    quality: dict[str, Any]  # a `QualityReport` of the text, as JSON
    metrics: dict[str, float]  # flat names
    origin: dict[str, str]  # hashes and names of what the export was made from, and its own
    export: Path  # its folder
    float_type: FloatType
    float_bytes: int  # size of the float model's files
    facts: dict[str, str] = field(default_factory=dict)  # of its stages, as `Result.facts`

    @property
    def folder(self) -> Path:
        """Where the reports go: no other recipe that leads to this export writes there."""
        return self.export / FOLDER / recipe_sha256(self.recipe)[:12]

    def more_metrics(self) -> dict[str, float]:
        """Return what is registered beside the metrics of the export."""
        return {}

    def problems(self) -> list[str]:
        """Return what a person must act on, one sentence each."""
        return []

    def notes(self) -> list[str]:
        """Return what was undone because it did not help, one sentence each."""
        return []

    def lineage(self) -> dict[str, str]:
        """Return where the result comes from and what became of it; the same for equal runs."""
        return self.origin | {
            **{name.replace(" ", "_"): text for name, text in self.facts.items()},
            **self.float_type.tags(),
            "recipe_sha256": recipe_sha256(self.recipe),
            "problems": "; ".join(self.problems())[:LONGEST_TAG] or "none",
            "notes": "; ".join(self.notes())[:LONGEST_TAG] or "none",
        }

    def models(self, own: str) -> list[Model]:
        """Return the float model and the export, as `size_section` takes them."""
        found = read_metrics(self.metrics)
        return [
            ("float", self.float_bytes, found["perplexity/float"]),
            (own, self.metrics["size_bytes"], found["perplexity/quantized"]),
        ]


@dataclass(frozen=True)
class Told:
    """What one kind of run says that others do not."""

    kind: str
    lead: str
    own: str  # what the export is called beside the float model
    models: Sequence[Model]
    stages: Sequence[tuple[str, str]]  # and what became of them
    sections: Sequence[Section]
    summary: Sequence[str]  # titles of those that stand in summary.md
    text: str  # what the text it read is called
    text_name: str  # and the file about that
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)  # and in other files
    before: Mapping[str, float] | None = None  # metrics of the export it started from
    after_result: str = ""


def run_report(
    reports: RunReports,
    told: Told,
    data: Mapping[str, Any],
    tables: Mapping[str, tuple[Rows, str]] | None = None,
) -> Report:
    """Return a run as it is written and shown."""
    lead = f"{told.lead} Export: {reports.export.name}."
    sections = [
        _result_section(reports, told),
        size_section(told.models),
        _outcome_section(reports, [*told.stages, *reports.facts.items()]),
        *told.sections,
        _text_section(reports.quality, reports.recipe.seed, told.text),
        *_closing_sections(reports),
    ]
    document = Document(told.kind, reports.recipe.name, lead, run_tiles(reports), sections)
    summary = document.only(RESULT, OUTCOME, *told.summary, tiles=True)
    text = document.only(told.text)
    change = written(reports.metrics["perplexity/ratio"] - 1, "+.1%")
    return Report(
        name=reports.recipe.name,
        folder=reports.folder,
        document=document,
        data={
            **data,
            "recipe.yaml": recipe_yaml(reports.recipe),
            "lineage.json": json.dumps(reports.lineage(), indent=1, sort_keys=True) + "\n",
        },
        texts={
            "summary.md": summary,
            f"{told.text_name}.md": text,
            **{name: document.only(*titles) for name, titles in told.texts.items()},
        },
        shown={
            told.text_name: (text, f"{told.text}: {reports.quality['verdict']}"),
            "summary": (summary, f"Perplexity {change} against the float model"),
        },
        tables=tables or {},
    )


def run_tiles(reports: RunReports) -> list[Tile]:
    """Return what is to be seen first of a run."""
    metrics, gate = reports.metrics, reports.recipe.gate
    size = metrics["size_bytes"]
    failures, asked = gate_failures(gate, metrics), _thresholds(gate)
    problems, notes = len(reports.problems()), len(reports.notes())
    return [
        *quality_tiles(metrics),
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


def _result_section(reports: RunReports, told: Told) -> Section:
    found = read_metrics(reports.metrics)
    rows = result_rows(found)
    heads = ["measure", "float", told.own, "difference"]
    if told.before is not None:
        heads = ["measure", "float", "before", told.own, "difference to float"]
        start = {str(row[0]): row[2] for row in result_rows(read_metrics(told.before))}
        rows = [(*row[:2], start.get(str(row[0]), ""), *row[2:]) for row in rows]
    error = "; ± is one standard error"
    if found["perplexity/quantized"].stderr is None:
        error = " of a single window, too few for a standard error"
    tokens = (
        f"On {reports.metrics['tokens']:,.0f} predicted tokens{error}. Size counts weights, "
        "configuration and tokenizer; bits per weight count codes, scales and zeros of the "
        f"quantized linears.{told.after_result}"
    )
    return Section(RESULT, [Table(heads, rows, sorts=False), tokens])


def _outcome_section(reports: RunReports, stages: Sequence[tuple[str, str]]) -> Section:
    """Return what became of the stages and the gate of a run, its problems and notes."""
    failures = gate_failures(reports.recipe.gate, reports.metrics)
    asked = _thresholds(reports.recipe.gate)
    parts: list[Any] = [facts_table(stages, "stage")]
    if asked:
        parts.append(facts_table(asked, "threshold of the gate"))
        words = "The gate failed:" if failures else "The gate passed: every threshold is kept."
        parts.append(words)
    else:
        parts.append("The recipe sets no threshold for the gate.")
    if failures:
        parts.append(failures)
    problems = reports.problems()
    parts.append("Problems:" if problems else "No problems.")
    if problems:
        parts.append(problems)
    if notes := reports.notes():
        parts += ["Notes, which ask for nothing:", notes]
    return Section(OUTCOME, parts)


def _text_section(quality: dict[str, Any], seed: int, title: str) -> Section:
    """Return what is known of the text that was calibrated with or trained on."""
    samples, length = quality["samples"], quality["length"]
    about = (
        f"{samples} windows of {length} tokens ({samples * length:,} tokens), source "
        f"{quality['source']}, seed {seed}. Verdict: {VERDICTS[quality['verdict']]}."
    )
    scripts = ", ".join(
        f"{name} {written(share, '.1%')}" for name, share in quality["scripts"].items()
    )
    grams = [
        (
            f"Distinct {n}-grams in a window, in the set",
            f"{written(share, '.1%')}, {written(quality['distinct_in_set'][n], '.1%')}",
        )
        for n, share in quality["distinct_in_window"].items()
    ]
    rows = [
        ("Tokens of the vocabulary that occur", written(quality["token_coverage"], ".1%")),
        *grams,
        ("Windows that mostly repeat themselves", written(quality["repetitive_windows"], ".1%")),
        ("Windows that copy another", str(quality["duplicate_windows"])),
        ("Letters by script", scripts or "no letters"),
        ("Mean loss of the float model", f"{quality['mean_nll']:.3f} nats per token"),
    ]
    reasons = [quality["reasons"]] if quality["reasons"] else []
    return Section(title, [about, *reasons, facts_table(rows)])


def _closing_sections(reports: RunReports) -> list[Section]:
    """Return every number of the evaluation, the origin, the recipe and the versions."""
    return [
        Section("All numbers", [metrics_table(reports.metrics)]),
        Section("Origin", [facts_table(sorted(reports.lineage().items()), "tag")]),
        *recipe_sections(recipe_yaml(reports.recipe)),
    ]


def _thresholds(gate: GateConfig) -> dict[str, str]:
    """Return what a gate asks for, by name; empty: nothing."""
    values = gate.model_dump()
    drops, confidence = values.pop("max_accuracy_drop"), values.pop("confidence")
    asked = {name: f"{value:g}" for name, value in values.items() if value is not None}
    return asked | {
        f"max_accuracy_drop: {task}": f"{drop:g} with confidence {confidence:g}"
        for task, drop in drops.items()
    }
