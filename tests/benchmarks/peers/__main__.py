"""Run what is missing, then write peers.json, peers.md and peers.png.

    python -m tests.benchmarks.peers [--parts quality cost] [--tools llm-compressor ...]

The repetitions of a part go round: every tool once, then every tool again, so that a slow hour
falls on all of them. Nothing else may run on the machine; only ratios of one bench can be compared.
"""

import argparse
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import load_file

from tests.benchmarks.peers import autoround, gptqmodel, llm_compressor, normtweak
from tests.benchmarks.peers.cases import COST, QUALITY, Case
from tests.benchmarks.peers.environments import PEERS
from tests.benchmarks.peers.job import ENVIRONMENT, Job
from tests.benchmarks.peers.summary import write_summary
from tests.benchmarks.results import DEFAULT_OUT, REPOSITORY, machine

TOOLS = {one.ENVIRONMENT.name: one for one in (llm_compressor, gptqmodel, autoround, normtweak)}
CASES = {"quality": QUALITY, "cost": COST}


@dataclass(frozen=True)
class Run:
    """One tool with one setting on one case, for the n-th time."""

    part: str
    case: Case
    tool: str
    setting: str
    repeat: int

    @property
    def file(self) -> Path:
        """Where its result lies."""
        setting = "".join(c if c.isalnum() else "-" for c in self.setting).strip("-")
        name = f"{self.part}-{self.case.name}-{self.tool}-{setting}-{self.repeat}.json"
        return PEERS / "runs" / name


def main() -> None:
    """Run all that is asked for and has no result yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--cases", nargs="+", help="such as llama-w4g64; all where not given")
    parser.add_argument("--settings", nargs="+", help="such as GPTQ; all where not given")
    parser.add_argument(
        "--repeats", type=int, default=3, help="of the part cost; the other has one"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    for run in planned(options):
        if not run.file.is_file():
            found = done(run, TOOLS[run.tool], options.threads)
            run.file.parent.mkdir(parents=True, exist_ok=True)
            run.file.write_text(json.dumps(found, indent=1) + "\n")
            print(json.dumps(found), flush=True)
    found = [json.loads(file.read_text()) for file in sorted((PEERS / "runs").glob("*.json"))]
    print(write_summary(options.out, machine() | {"threads": options.threads}, found))


def planned(options: argparse.Namespace) -> list[Run]:
    """Return the runs that are asked for, in the order in which they take turns."""
    runs = []
    for part in options.parts:
        for repeat in range(options.repeats if part == "cost" else 1):
            for case in CASES[part]:
                if options.cases and case.name not in options.cases:
                    continue
                for name in options.tools:
                    tool = TOOLS[name]
                    settings = tool.COST if part == "cost" else tool.SETTINGS
                    runs += [
                        Run(part, case, name, setting, repeat)
                        for setting in settings
                        if not options.settings or setting in options.settings
                    ]
    return runs


def done(run: Run, tool: ModuleType, threads: int) -> dict[str, Any]:
    """Return what a run cost and gave, or what the tool said when it failed."""
    python, case = tool.ENVIRONMENT.python(), run.case
    told = {
        "part": run.part,
        "model": case.model,
        "bits": case.bits,
        "group_size": case.group_size,
        "tool": run.tool,
        "setting": run.setting,
        "repeat": run.repeat,
        "load_average_before": os.getloadavg()[0],
    }
    calibration, judged = case.tokens()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        job = Job(
            folder=str(case.folder().resolve()),
            tokens=str(calibration.resolve()),
            bits=case.bits,
            group_size=case.group_size,
            setting=run.setting,
            threads=threads,
            result=str(place / "result.json"),
            scratch=scratch,
            weights=str(place / "weights.safetensors") if judged else None,
        )
        job.write(place / "job.json")
        count = str(threads)
        environment = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": count, "TMPDIR": scratch}
        # The pool of GPTQModel refuses to be smaller than what it asks of it.
        environment |= {"GPTQMODEL_CPU_WORKERS": "2", "PYTHONPATH": str(REPOSITORY)}
        ended = subprocess.run(
            [python, "-m", tool.__name__, place / "job.json"],
            cwd=scratch,  # where some tools write logs
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        (PEERS / "logs").mkdir(exist_ok=True)
        (PEERS / "logs" / run.file.with_suffix(".txt").name).write_text(ended.stdout)
        if not Path(job.result).is_file():
            lines = [line for line in ended.stdout.splitlines() if line.strip()]
            return told | {"error": lines[-1].strip() if lines else f"exit {ended.returncode}"}
        told |= json.loads(Path(job.result).read_text())
        if job.weights:
            told |= case.judged(load_file(job.weights))
    return told


if __name__ == "__main__":
    main()
