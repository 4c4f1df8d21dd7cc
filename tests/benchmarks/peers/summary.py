"""What the runs of all tools say together: one file of numbers, one page, one picture."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.benchmarks.results import table

FIRST = ("llm-compressor", "GPTQ")  # what ratios are taken to
MEASURES = ("cpu_seconds", "seconds", "above_start_bytes")
MEBI = 2**20
QUALITY_HEADER = [
    "model",
    "bits",
    "tool",
    "setting",
    "perplexity",
    "/ float",
    "of the linears quantized",
    "CPU s",
    "wall s",
    "MiB above start",
    "CPU / llm-compressor's",
]
COST_HEADER = [
    "tool",
    "setting",
    "CPU s per block",
    "wall s per block",
    "MiB above start, 6 blocks",
    "CPU / llm-compressor's",
    "least and most of the repetitions",
    "memory / llm-compressor's",
]

Found = dict[str, Any]


def write_summary(out: Path, machine: dict[str, Any], runs: list[Found]) -> str:
    """Write peers.json, peers.md and peers.png, and return the page."""
    quality = quality_rows([run for run in runs if run["part"] == "quality"])
    cost = cost_rows([run for run in runs if run["part"] == "cost"])
    facts = {"command": "python -m tests.benchmarks.peers", "machine": machine}
    facts |= {"cost": cost, "quality": quality, "runs": runs}
    page = "\n".join(
        [
            "Seconds per block and memory of a random Llama (hidden 768, intermediate 2048, 12 "
            "heads, vocabulary 4096), 32 windows of 512 random tokens, 4 bits in groups of 128: a "
            "quarter of what 6 blocks take more than 2, medians of the repetitions.\n",
            table(COST_HEADER, [cost_cells(row) for row in cost]),
            "Trained models, the same 64 windows of 256 tokens for each tool; perplexity of the "
            "dequantized weights in float32 on the same 128 windows of held-out text.\n",
            table(QUALITY_HEADER, [quality_cells(row) for row in quality]),
        ]
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / "peers.md").write_text(page)
    draw(out / "peers.png", quality, cost)
    return page


def quality_rows(runs: list[Found]) -> list[Found]:
    """Return the runs, each beside llm-compressor's on the same model and width."""
    first = {
        (run["model"], run["bits"]): run["cpu_seconds"]
        for run in runs
        if (run["tool"], run["setting"]) == FIRST and "cpu_seconds" in run
    }
    rows = []
    for run in sorted(runs, key=lambda run: (run["model"], run["bits"])):
        beside = first.get((run["model"], run["bits"]))
        ratio = run["cpu_seconds"] / beside if beside and "cpu_seconds" in run else None
        rows.append(run | {"cpu_ratio": ratio})
    return rows


def cost_rows(runs: list[Found]) -> list[Found]:
    """Return what a block costs each tool: the slope over the number of blocks, by repetition."""
    by_tool: dict[tuple[str, str], dict[int, dict[int, Found]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for run in runs:
        blocks = int(run["model"].rpartition("-")[2])
        by_tool[run["tool"], run["setting"]][run["repeat"]][blocks] = run
    slopes = {}
    for tool, repeats in by_tool.items():
        slopes[tool] = {
            number: _slope(found)
            for number, found in repeats.items()
            if len(found) > 1 and not any("error" in run for run in found.values())
        }
    rows = []
    for (tool, setting), repeats in by_tool.items():
        errors = [one["error"] for f in repeats.values() for one in f.values() if "error" in one]
        row: Found = {"tool": tool, "setting": setting, "error": errors[0] if errors else None}
        for name in MEASURES:
            values = [slope[name] for slope in slopes[tool, setting].values()]
            row[name] = median(values) if values else None
            beside = [
                slope[name] / slopes[FIRST][number][name]
                for number, slope in slopes[tool, setting].items()
                if number in slopes.get(FIRST, {})
            ]
            row[f"{name}_ratios"] = sorted(beside)
        rows.append(row)
    return rows


def _slope(found: dict[int, Found]) -> Found:
    few, many = min(found), max(found)
    slope = {
        name: (found[many][name] - found[few][name]) / (many - few)
        for name in ("cpu_seconds", "seconds")
    }
    return slope | {"above_start_bytes": found[many]["above_start_bytes"]}


def cost_cells(row: Found) -> list[Any]:
    """Return the table's row of a tool's cost; what failed says why."""
    if row["cpu_seconds"] is None:
        return [row["tool"], row["setting"], row["error"] or "not run", "", "", "", "", ""]
    ratios, memory = row["cpu_seconds_ratios"], row["above_start_bytes_ratios"]
    return [
        row["tool"],
        row["setting"],
        row["cpu_seconds"],
        row["seconds"],
        row["above_start_bytes"] / MEBI,
        median(ratios) if ratios else "",
        f"{ratios[0]:.2f} to {ratios[-1]:.2f}" if ratios else "",
        median(memory) if memory else "",
    ]


def quality_cells(row: Found) -> list[Any]:
    """Return the table's row of a run; what failed says why."""
    model = [row["model"], row["bits"], row["tool"], row["setting"]]
    if "error" in row:
        return [*model, row["error"].replace("|", "/"), "", "", "", "", "", ""]
    return [
        *model,
        f"{row['perplexity']:.4f}",
        f"{row['perplexity'] / row['perplexity_float']:.4f}",
        f"{row['quantized']:.0%}",
        row["cpu_seconds"],
        row["seconds"],
        row["above_start_bytes"] / MEBI,
        row["cpu_ratio"] if row["cpu_ratio"] is not None else "",
    ]


def draw(path: Path, quality: list[Found], cost: list[Found]) -> None:
    """Draw what a block costs, and for each model what perplexity was had for which seconds."""
    finished = [row for row in quality if "error" not in row]
    models = sorted({(row["model"], row["bits"]) for row in finished})
    figure = Figure(figsize=(4 * (1 + max(1, len(models) // 3)), 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 1 + max(1, -(-len(models) // 3)), squeeze=False)
    colors = {
        tool: f"C{i}" for i, tool in enumerate(sorted({row["tool"] for row in quality + cost}))
    }
    shown = [row for row in cost if row["cpu_seconds"] is not None]
    names = [f"{row['tool']}\n{row['setting']}" for row in shown]
    axes[0][0].barh(
        names, [row["cpu_seconds"] for row in shown], color=[colors[row["tool"]] for row in shown]
    )
    axes[0][0].set_xlabel("CPU s per block")
    axes[1][0].barh(
        names,
        [row["above_start_bytes"] / MEBI for row in shown],
        color=[colors[row["tool"]] for row in shown],
    )
    axes[1][0].set_xlabel("MiB above start")
    axes[2][0].axis("off")
    for place, (model, bits) in enumerate(models):
        ax = axes[place % 3][1 + place // 3]
        for row in finished:
            if (row["model"], row["bits"]) == (model, bits):
                ratio = row["perplexity"] / row["perplexity_float"]
                ax.scatter(row["cpu_seconds"], ratio, color=colors[row["tool"]])
                ax.annotate(row["setting"], (row["cpu_seconds"], ratio), fontsize=6)
        ax.set(xscale="log", xlabel="CPU s", ylabel="perplexity / float")
        ax.set_title(f"{model}, {bits} bits", fontsize=9)
    handles = [
        axes[2][0].scatter([], [], color=color, label=tool) for tool, color in colors.items()
    ]
    axes[2][0].legend(handles=handles, loc="center")
    figure.savefig(path, dpi=110)
