"""The full ablation: its tables and figures for docs/results.md.

    python -m tests.benchmarks.ablation [--recipe conf/ablation.yaml] [--out docs/results]

Runs the command, or takes what `--result` of an earlier run says, and copies what it wrote:
ablation.md (also into docs/results.md), ablation.json, ablation.parquet and a figure of each study.
An ablation that is stopped goes on where it was.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.results import DEFAULT_OUT, REPOSITORY, machine, without_headings, write_table

SPENT = ("seconds", "cpu_seconds", "peak_rss_bytes")


def main() -> int:
    """Run the ablation or read what one wrote, copy its files, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=REPOSITORY / "conf" / "ablation.yaml")
    parser.add_argument("--result", type=Path, help="of a run of the command, in place of one")
    parser.add_argument(
        "--made-in", type=float, help="seconds that all cells took, where --result found them made"
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        file = options.result or Path(folder) / "result.json"
        if options.result is None:
            from flows.cli import main as normtweak

            if code := normtweak(["ablate", str(options.recipe), "--result", str(file)]):
                return code
        result = json.loads(file.read_text())
    cached = sum(result["cached"].values())
    facts |= {"num_cells": len(result["cached"]), "num_cells_cached": cached}
    facts |= {key: result[key] for key in SPENT}
    if options.made_in is not None:
        facts["seconds_making_all_cells"] = options.made_in
    copy(Path(result["results_dir"]), options.out, facts)
    return 0


def copy(ablation: Path, out: Path, facts: dict[str, Any]) -> None:
    """Put the files of an ablation into a folder; its tables into the page too, if it is ours."""
    out.mkdir(parents=True, exist_ok=True)
    for figure in ablation.glob("*.png"):
        shutil.copy(figure, out / f"ablation-{figure.name}")
    shutil.copy(ablation / "cells.parquet", out / "ablation.parquet")
    record = {"command": "python -m tests.benchmarks.ablation"} | facts
    record |= json.loads((ablation / "results.json").read_text())
    (out / "ablation.json").write_text(json.dumps(record, indent=1) + "\n")
    write_table(out, "ablation", without_headings((ablation / "tables.md").read_text()))


if __name__ == "__main__":
    sys.exit(main())
