"""A run that cannot go on, as a person meets it: exit code, last line, log, state in Prefect."""

import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tasks.engine.events import read_events
from tests.engine import with_database
from tests.flows.command_line import normtweak
from tests.flows.tiny_model import write_project
from tests.tiny_exports import save_tiny_model, tiny_config

# The first start makes Prefect's database, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(400)
SECONDS = 300


class Typed:
    """A command in a process of its own, with its own state root that tests share."""

    def __init__(self, folder: Path, migrated: Path):
        self.folder, self.root = folder, with_database(folder / "state", migrated)
        self.text = folder / "error.txt"
        self.process: subprocess.Popen | None = None

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen:
        with self.text.open("wb") as text:
            streams = {"stdout": subprocess.DEVNULL, "stderr": text}
            self.process = normtweak(self.root, *arguments, **streams, **variables)
        return self.process

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def states(self) -> list[str]:
        database = sqlite3.connect(f"file:{self.root}/prefect/prefect.db?mode=ro", uri=True)
        with database:
            rows = database.execute("select state_type from flow_run order by created")
            return [row[0] for row in rows]

    def plain_text(self) -> str:
        text = self.text.read_text()
        assert "Traceback" not in text
        return text


@pytest.fixture(scope="module")
def project(tmp_path_factory, migrated_database) -> Typed:
    folder = tmp_path_factory.mktemp("typed")
    write_project(folder)
    source = save_tiny_model(folder / "model", tiny_config("llama", max_position_embeddings=256))
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    broken = folder / "broken"
    broken.mkdir()
    for path in source.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    return Typed(folder, migrated_database)


@pytest.fixture
def typed(project) -> Iterator[Typed]:
    yield project
    project.stop()


def test_a_weight_that_is_nan_fails_the_run_in_one_sentence(typed):
    result = typed.folder / "result.json"
    one = typed.start(
        "quantize", str(typed.folder / "recipe.yaml"),
        "--set", f"model.source={typed.folder}/broken", "--result", str(result),
    )  # fmt: skip
    assert one.wait(SECONDS) == 1, typed.text.read_text()
    last = typed.plain_text().splitlines()[-1]
    assert re.fullmatch(r"normtweak: .*(nan|finite).* The log is \S+\.log\.", last), last
    log = Path(last.rpartition(" ")[2].rstrip("."))
    assert log.parent == typed.root / "logs"
    assert "NonFiniteError" in log.read_text()
    assert typed.states() == ["FAILED"]
    assert not result.exists()
    assert not list((typed.root / "exports").iterdir())


def calibrating(typed: Typed, seed: int, **variables: str) -> tuple[subprocess.Popen, str]:
    """Start a run and return it, with the id of its flow run, once it is at its first stage."""
    before = len(read_events(typed.root))
    recipe = str(typed.folder / "recipe.yaml")
    one = typed.start("quantize", recipe, "--set", f"seed={seed}", **variables)
    end = time.monotonic() + SECONDS
    while True:
        for event in read_events(typed.root)[before:]:
            if event["event"] == "calibrate":
                return one, event["flow_run"]
        assert one.poll() is None, typed.text.read_text()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_a_run_that_is_stopped_says_so_and_is_not_left_running(typed, number, code, text):
    one, _ = calibrating(typed, int(number))
    one.send_signal(number)
    assert one.wait(SECONDS) == code, typed.text.read_text()
    assert typed.plain_text().splitlines()[-1] == (
        f"normtweak: {text}; finished stages are kept, and the same command goes on from there."
    )
    assert typed.states()[-1] == "CRASHED"


def test_a_run_that_is_cancelled_on_the_page_ends_within_seconds(typed, session_api):
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    one, run = calibrating(typed, 3, PREFECT_API_URL=session_api)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Cancelling())
        began = time.monotonic()
        assert one.wait(SECONDS) == 130, typed.text.read_text()
        assert time.monotonic() - began < 10
        assert client.read_flow_run(run).state.is_cancelled()
    assert typed.plain_text().splitlines()[-1] == (
        "normtweak: cancelled on Prefect's page or with its command; finished stages are kept, and "
        "the same command goes on from there."
    )
    assert not (typed.root / "mlflow.db").exists()
