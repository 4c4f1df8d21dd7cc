"""What `normtweak evaluate` and `normtweak compare` print."""

import sys
from typing import Any

from tasks.engine.progress import readable_bytes, readable_seconds
from tasks.tables.evaluation import stderr_name

HIDDEN = ("tokens", "windows", "size_bytes", "bits_per_weight")


def evaluation_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of an evaluation as (label, text)."""
    metrics = result["metrics"]
    lines = [("model", result["model"])]
    if result["against"]:
        lines.append(("against", result["against"]))
    lines += [(name, text) for name, text in metric_lines(_named(result))]
    size = readable_bytes(metrics["size_bytes"])
    if "bits_per_weight" in metrics:
        size += f", {metrics['bits_per_weight']:.2f} bits per quantized weight"
    return [
        *lines,
        ("size", size),
        ("measured on", measured_on(result["settings"], metrics["tokens"])),
        ("time", _time(result)),
        *(("written", file) for file in result["files"]),
    ]


def comparison_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of a comparison as (label, text)."""
    lines = []
    for model in result["models"]:
        lines.append(("model", f"{model['name']} ({readable_bytes(model['size_bytes'])})"))
        lines += [(f"  {name}", text) for name, text in metric_lines(model["metrics"])]
    for pair in result["pairs"]:
        lines.append(("pair", f"{pair['second']} less {pair['first']}"))
        lines += [(f"  {name}", text) for name, text in metric_lines(pair["metrics"])]
    tokens = result["models"][0]["metrics"]["tokens"]
    return [
        *lines,
        ("measured on", measured_on(result["settings"], tokens)),
        ("time", _time(result)),
        *(("written", file) for file in result["files"]),
    ]


def metric_lines(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Return each number with its standard error, where it has one."""
    lines = []
    for name, value in metrics.items():
        if name.endswith("stderr") or name in HIDDEN:
            continue
        stderr = metrics.get(stderr_name(name))
        text = f"{value:.5g}" if stderr is None else f"{value:.5g} ± {stderr:.2g}"
        lines.append((name.removesuffix("/mean"), text))
    return lines


def print_evaluation(result: dict[str, Any]) -> None:
    """Print the lines of an evaluation."""
    _print(evaluation_lines(result))


def print_comparison(result: dict[str, Any]) -> None:
    """Print the lines of a comparison."""
    _print(comparison_lines(result))


def _named(result: dict[str, Any]) -> dict[str, float]:
    """Return the metrics; of a model measured alone, without the word that tells two apart."""
    metrics = result["metrics"]
    if result["against"]:
        return metrics
    return {name.replace("/float", ""): value for name, value in metrics.items()}


def measured_on(settings: dict[str, Any], tokens: float) -> str:
    """Return how much text and how many items an evaluation rests on."""
    text = f"{tokens:,.0f} tokens in {settings['windows']} windows"
    tasks = [f"{one['items']} items of {task}" for task, one in settings["tasks"].items()]
    return ", ".join([text, *tasks])


def _time(result: dict[str, Any]) -> str:
    cached = list(result["cached"].values())
    return (
        f"{readable_seconds(result['seconds'])}, {sum(cached)} of {len(cached)} stages cached, "
        f"peak memory {readable_bytes(result['peak_rss_bytes'])}"
    )


def _print(lines: list[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in lines) + 1
    for label, text in lines:
        sys.stdout.write(f"{label + ':':<{width}} {text}\n")
