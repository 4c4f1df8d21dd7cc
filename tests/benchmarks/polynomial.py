"""The polynomial study in small: its table and figures for docs/results.md.

    python -m tests.benchmarks.polynomial [--recipe conf/polynomial-small.yaml] [--out docs/results]

Runs the command and copies what it wrote: polynomial.md (also into docs/results.md),
polynomial.json, polynomial-curves.png and polynomial-examples.png. A study that is stopped goes on
where it was.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.results import DEFAULT_OUT, REPOSITORY, machine, without_headings, write_table

SPENT = ("seconds", "training_seconds", "cpu_seconds", "peak_rss_bytes")


def main() -> int:
    """Run the study, copy its files, and return the exit code of the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--recipe", type=Path, default=REPOSITORY / "conf" / "polynomial-small.yaml"
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        from flows.cli import main as normtweak

        if code := normtweak(["polynomial", str(options.recipe), "--result", str(file)]):
            return code
        result = json.loads(file.read_text())
    copy(Path(result["results_dir"]), options.out, facts | {key: result[key] for key in SPENT})
    return 0


def copy(study: Path, out: Path, facts: dict) -> None:
    """Put the files of a study into a folder; its table into the page too, if that is ours."""
    out.mkdir(parents=True, exist_ok=True)
    for figure in ("curves", "examples"):
        shutil.copy(study / f"{figure}.png", out / f"polynomial-{figure}.png")
    record = {"command": "python -m tests.benchmarks.polynomial"} | facts
    record |= json.loads((study / "results.json").read_text())
    (out / "polynomial.json").write_text(json.dumps(record, indent=1) + "\n")
    write_table(out, "polynomial", without_headings((study / "table.md").read_text()))


if __name__ == "__main__":
    sys.exit(main())
