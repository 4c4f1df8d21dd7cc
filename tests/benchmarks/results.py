"""Where a benchmark writes what it found: numbers as JSON, with what produced them, and a table."""

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_OUT = REPOSITORY / "docs" / "results"
PAGES = {name: "docs/results.md" for name in ("ablation", "ternary", "finetune", "polynomial")}
PAGES |= {"stages": "README.md"}


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge the numbers; the load tells how noisy they are."""
    return {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": os.getloadavg()[0],
    }


def write_results(
    out: Path, name: str, facts: dict[str, Any], header: list[str], rows: list[list[Any]]
) -> str:
    """Write NAME.json and NAME.md, and return the table.

    Args:
        out: Folder; made where it does not exist.
        name: Of the two files.
        facts: What goes into the JSON besides the command.
        header: Column titles of the table.
        rows: Its cells; numbers are shown with three significant digits.
    """
    out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m", f"tests.benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    text = table(header, rows)
    (out / f"{name}.json").write_text(json.dumps({"command": command} | facts, indent=1) + "\n")
    (out / f"{name}.md").write_text(text)
    return text


def write_table(out: Path, name: str, text: str) -> None:
    """Write NAME.md, and where the folder is the repository's also the page that shows it."""
    (out / f"{name}.md").write_text(text)
    if out == DEFAULT_OUT:
        page = REPOSITORY / PAGES[name]
        before, _, after = split_page(page.read_text(), name)
        page.write_text(f"{before}\n{text}{after}")


def without_headings(report: str) -> str:
    """Return a report as part of another page: its title and pictures left out, headings bold."""
    lines = report.splitlines()[2:]
    kept = [line for line in lines if not line.startswith("![")]
    return "\n".join(f"**{one[3:]}**" if one.startswith("## ") else one for one in kept) + "\n"


def split_page(page: str, name: str) -> tuple[str, str, str]:
    """Return a page up to the mark of a table, the table, and the page from its second mark on."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = page.split(begin)
    text, after = rest.split(end)
    return before + begin, text, end + after


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Return a markdown table."""
    lines = [header, ["---"] * len(header), *([_shown(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
