"""Runs of a training from the command line, ended at a step of one's choice."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tasks.engine.events import read_events
from tests.flows.command_line import normtweak


class Runs:
    """Starts the command on one state root, against the server of the session."""

    def __init__(self, root: Path, recipe: Path, server: str, flow: str = "ternary"):
        self.root, self.recipe, self.server, self.flow = root, recipe, server, flow
        self.result = root.with_suffix(".json")

    def start(self) -> subprocess.Popen:
        return self.command(self.flow, str(self.recipe), "--result", str(self.result))

    def command(self, *arguments: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return normtweak(self.root, *arguments, **pipes, PREFECT_API_URL=self.server)

    def finish(self) -> dict:
        run = self.start()
        output, _ = run.communicate(timeout=400)
        assert run.returncode == 0, output.decode()[-3000:]
        return json.loads(self.result.read_text())

    def steps(self) -> list[int]:
        spans = [entry for entry in read_events(self.root) if entry["event"] == "steps"]
        return [step for one in spans for step in range(one["first"], one["last"] + 1)]

    def signal_at(self, step: int, number: int) -> int:
        """Run until a step is done anew, send the signal, and return the exit code."""
        return self.ended_at(step, lambda run: run.send_signal(number))[0]

    def ended_at(self, step: int, act: Callable[[subprocess.Popen], None]) -> tuple[int, str]:
        """Run until a step is done anew, act, and return exit code and output."""
        seen = len(self.steps())
        run = self.start()
        deadline = time.monotonic() + 300
        while not any(done >= step for done in self.steps()[seen:]):
            assert run.poll() is None, run.stdout.read().decode()[-3000:]
            assert time.monotonic() < deadline, f"step {step} never came"
            time.sleep(0.005)
        act(run)
        output, _ = run.communicate(timeout=120)
        return run.returncode, output.decode()
