"""The result of a run in a few lines for a person."""

import sys
from typing import Any

from tasks.engine.progress import readable_bytes, readable_seconds

SHOWN = {"problem": 5, "note": 2}  # at most of each kind


def summary_lines(name: str, result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the summary as (label, text).

    Args:
        name: Name of the registered model.
        result: What the flow returned.
    """
    metrics, registered = result["metrics"], result["registered"]
    aliases = "".join(f" @{alias}" for alias in registered["aliases"])
    blocks = [block["cached"] for block in result["blocks"]]
    cached, what = (blocks, "blocks") if blocks else (list(result["cached"].values()), "stages")
    lines = [
        (
            "perplexity",
            f"{_with_error(metrics, 'perplexity/float')} float -> "
            f"{_with_error(metrics, 'perplexity/quantized')} quantized",
        ),
        ("divergence", f"KL {_with_error(metrics, 'kl/mean', 'kl/stderr')} nats per token"),
        ("agreement", f"top-1 token the same at {_percent(metrics, 'top1_agreement')}"),
        *_task_lines(metrics),
        (
            "size",
            f"{readable_bytes(metrics['size_bytes'])}, "
            f"{metrics['bits_per_weight']:.2f} bits per quantized weight",
        ),
        (
            "time",
            f"{readable_seconds(result['seconds'])}, {sum(cached)} of {len(cached)} {what} cached, "
            f"peak memory {readable_bytes(result['peak_rss_bytes'])}",
        ),
        ("export", result["export_dir"]),
        ("registered", f"{registered['name']} version {registered['version']}{aliases}"),
    ]
    lines += [("gate", f"failed: {failure}") for failure in registered["gate_failures"]]
    if registered["promotion"]:
        lines.append(("promotion", registered["promotion"]))
    for label, shown in SHOWN.items():
        found = result[f"{label}s"]
        lines += [(label, sentence) for sentence in found[:shown]]
        if len(found) > shown:
            lines.append((label, f"{len(found) - shown} more, in the report"))
    return [("model", name), *lines, ("look at it", "normtweak ui")]


def _task_lines(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Return a line for each accuracy that was measured, with how sure its change is."""
    lines = []
    for name in metrics:
        measure, _, whose = name.rpartition("/")
        if whose == "float" and measure.endswith(("/acc", "/acc_norm")):
            task, _, kind = measure.rpartition("/")
            lines.append(
                (
                    task[:11],
                    f"{kind} {100 * metrics[name]:.1f} % -> "
                    f"{100 * metrics[f'{measure}/quantized']:.1f} % "
                    f"(McNemar p {metrics[f'{measure}/mcnemar_p']:.2g})",
                )
            )
    return lines


def print_summary(name: str, result: dict[str, Any]) -> None:
    """Write the summary to standard output; labels are dimmed on a terminal."""
    lines = summary_lines(name, result)
    if not sys.stdout.isatty():
        for label, text in lines:
            print(f"{label + ':':<12} {text}")  # noqa: T201
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for label, text in lines:
        style = "bold" if label in ("model", "perplexity") else "yellow" * (label == "problem")
        console.print(Text.assemble((f"{label:<12}", "dim"), (text, style)))


def _with_error(metrics: dict[str, float], key: str, error: str | None = None) -> str:
    value = f"{metrics[key]:.4g}"
    stderr = metrics.get(error or f"{key}_stderr")
    return value if stderr is None else f"{value} ± {stderr:.2g}"


def _percent(metrics: dict[str, float], key: str) -> str:
    stderr = metrics.get(f"{key}_stderr")
    suffix = "" if stderr is None else f" ± {100 * stderr:.1f}"
    return f"{100 * metrics[key]:.1f}{suffix} % of positions"
