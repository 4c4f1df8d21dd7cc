"""What a command prints of its result: lines of a label and a text."""

import sys
from pathlib import Path
from typing import Any

from flows.reports.measures import measured_on, quality_tiles
from normtweak_core.evaluate.metric import read_metrics
from normtweak_core.export.verification.verify import VerificationReport
from normtweak_core.lazy import lazy
from normtweak_core.polynomial.config import width_name
from tasks.engine.progress import readable_bytes, readable_seconds
from tasks.server.report_pages import PAGE

# A file or pipe needs no colours.
rich_console, rich_text = lazy("rich.console"), lazy("rich.text")

SHOWN = {"problem": 5, "note": 2}  # at most of each kind
HIDDEN = ("tokens", "windows", "size_bytes", "bits_per_weight")
LOUD = {"model": "bold", "perplexity": "bold", "problem": "yellow"}  # on a terminal
Lines = list[tuple[str, str]]


def run_lines(name: str, result: dict[str, Any]) -> Lines:
    """Return the lines of a run that registered a version."""
    registered = result["registered"]
    aliases = "".join(f" @{alias}" for alias in registered["aliases"])
    blocks = [block["cached"] for block in result["blocks"]]
    cached, what = (blocks, "blocks") if blocks else (list(result["cached"].values()), "stages")
    lines = [
        ("model", name),
        *((tile.label.lower(), tile.text) for tile in quality_tiles(result["metrics"])),
        ("size", _size(result["metrics"])),
        ("time", _time(result, cached, what)),
        ("export", result["export_dir"]),
        ("registered", f"{registered['name']} version {registered['version']}{aliases}"),
        *(("gate", f"failed: {failure}") for failure in registered["gate_failures"]),
    ]
    if registered["promotion"]:
        lines.append(("promotion", registered["promotion"]))
    for label, shown in SHOWN.items():
        found = result[f"{label}s"]
        lines += [(label, sentence) for sentence in found[:shown]]
        if len(found) > shown:
            lines.append((label, f"{len(found) - shown} more, in the report"))
    return [*lines, ("look at it", "normtweak ui")]


def evaluation_lines(result: dict[str, Any]) -> Lines:
    """Return the lines of an evaluation."""
    beside, metrics = result["against"], result["metrics"]
    return [
        ("model", result["model"]),
        *([("against", beside)] if beside else []),
        *_metric_lines(metrics, alone=not beside),
        ("size", _size(metrics)),
        ("measured on", measured_on(result["settings"], metrics["tokens"])),
        *_closing(result),
    ]


def comparison_lines(result: dict[str, Any]) -> Lines:
    """Return the lines of a comparison."""
    lines = []
    for model in result["models"]:
        lines.append(("model", f"{model['name']} ({readable_bytes(model['size_bytes'])})"))
        lines += [(f"  {name}", text) for name, text in _metric_lines(model["metrics"])]
    for pair in result["pairs"]:
        lines.append(("pair", f"{pair['second']} less {pair['first']}"))
        lines += [(f"  {name}", text) for name, text in _metric_lines(pair["metrics"])]
    tokens = result["models"][0]["metrics"]["tokens"]
    return [*lines, ("measured on", measured_on(result["settings"], tokens)), *_closing(result)]


def ablation_lines(name: str, result: dict[str, Any]) -> Lines:
    """Return the lines of an ablation."""
    folder = Path(result["results_dir"])
    return [
        ("ablation", name),
        *result["reading"].items(),
        ("time", _time(result, list(result["cached"].values()), "cells", memory=False)),
        ("tables", str(folder / "tables.md")),
        ("page", str(folder / PAGE)),
    ]


def study_lines(name: str, result: dict[str, Any]) -> Lines:
    """Return the lines of a polynomial study."""
    cells, folder = result["cells"], Path(result["results_dir"])
    lines = [("study", name), ("float", f"test loss {result['float_loss']:.5f}")]
    for bits in dict.fromkeys(row["bits"] for row in cells):
        best = min((row for row in cells if row["bits"] == bits), key=lambda row: row["loss"])
        how = f"lr {best['lr']:g}" if best["rank"] is None else f"LoRA of rank {best['rank']}"
        lines.append(
            (width_name(bits), f"best test loss {best['loss']:.5f} ({best['start']}, {how})")
        )
    return [
        *lines,
        *(("reading", f"{c['claim']}: {c['verdict']} ({c['figures']})") for c in result["reading"]),
        ("time", _time(result, list(result["cached"].values()), "trainings", memory=False)),
        ("table", str(folder / "table.md")),
        ("page", str(folder / PAGE)),
    ]


def verification_lines(folder: Path, report: VerificationReport) -> list[str]:
    """Return what an independent reader found, line by line."""
    per_layer = report.layer_difference is not None  # the packed weights are what is compared
    kind = "mean" if report.logit_statistic == "mean" else "largest"
    versions = ", ".join(f"{name} {version}" for name, version in report.reader_versions.items())
    linears = (
        f"linears: each alone, largest difference {report.layer_difference:.2g} of its largest "
        f"output, allowed {report.layer_tolerance:.2g}"
        if per_layer
        else None
    )
    lines = [
        f"{folder}: the reader finds what was quantized",
        f"format: {report.format}, opened by {versions}",
        f"weights: {report.num_tensors} tensors equal bit for bit, {report.num_quantized} of them "
        f"{'packed' if per_layer else 'dequantized'}",
        linears,
        f"logits: {kind} difference {report.logit_difference:.2g} of the largest logit, allowed "
        f"{report.logit_tolerance:.2g}; same first choice at {100 * report.argmax_agreement:.1f} %",
        f"tokenizer: {'same answers' if report.tokenizer else 'none in the export'}",
        f"payload SHA-256: {report.payload_sha256}",
        f"seconds: {report.seconds:.1f}",
    ]
    return [line for line in lines if line is not None]


LINES = {
    "ablate": ablation_lines,
    "polynomial": study_lines,
    "evaluate": evaluation_lines,
    "compare": comparison_lines,
}


def show(command: str, *about: Any) -> None:
    """Print what came of a command."""
    print_lines(LINES.get(command, run_lines)(*about))


def print_lines(lines: Lines) -> None:
    """Write lines to standard output; on a terminal labels are dimmed."""
    width = max(12, *(len(label) + 1 for label, _ in lines))
    if not sys.stdout.isatty():
        for label, text in lines:
            sys.stdout.write(f"{label + ':':<{width}} {text}\n")
        return
    console = rich_console.Console(highlight=False, soft_wrap=True)
    for label, text in lines:
        styled = (text, LOUD.get(label, ""))
        console.print(rich_text.Text.assemble((f"{label:<{width}}", "dim"), styled))


def _metric_lines(metrics: dict[str, float], alone: bool = False) -> Lines:
    """Return each number with its standard error; of one model without the word that tells two."""
    return [
        (one.name if alone else one.full_name, _short(one.value, one.stderr))
        for one in read_metrics(metrics).values()
        if one.flat not in HIDDEN
    ]


def _short(value: float, stderr: float | None) -> str:
    return f"{value:.5g}" if stderr is None else f"{value:.5g} ± {stderr:.2g}"


def _size(metrics: dict[str, float]) -> str:
    size, bits = readable_bytes(metrics["size_bytes"]), metrics.get("bits_per_weight")
    return size if bits is None else f"{size}, {bits:.2f} bits per quantized weight"


def _closing(result: dict[str, Any]) -> Lines:
    time = _time(result, list(result["cached"].values()), "stages")
    return [("time", time), *(("written", file) for file in result["files"])]


def _time(result: dict[str, Any], cached: list[bool], what: str, memory: bool = True) -> str:
    text = f"{readable_seconds(result['seconds'])}, {sum(cached)} of {len(cached)} {what} cached"
    return text + (f", peak memory {readable_bytes(result['peak_rss_bytes'])}" if memory else "")
