"""Commands as they are typed: their help, their output, and how a run ends when it cannot go on."""

import errno
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from flows import failures
from flows.cli import build_parser, main
from flows.summary import print_summary, summary_lines
from normtweak_core import errors
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.writer import write_export
from tasks.environment import FOLDERS
from tasks.events import read_events
from tasks.locks import LockTimeoutError
from tasks.server import ServerError
from tests.flows.tiny_model import recipe_values, variables_of, write_project
from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config

REPOSITORY = Path(__file__).parents[2]
COMMANDS = build_parser()[1]
RESULT = {
    "export_dir": "/somewhere/exports/tiny-w2g64-0123",
    "export_sha256": "0" * 64,
    "metrics": {
        "perplexity/float": 4.4605, "perplexity/float_stderr": 0.2025,
        "perplexity/quantized": 5.9974, "perplexity/quantized_stderr": 0.25937,
        "kl/mean": 0.34309, "kl/stderr": 0.013926, "top1_agreement": 0.70965,
        "top1_agreement_stderr": 0.0096161, "bits_per_weight": 3.31215, "size_bytes": 197916.0,
    },
    "registered": {"name": "tiny", "version": 3, "aliases": ["candidate"]},
    "blocks": [{"cached": True}, {"cached": False}],
    "problems": ["block 1: tweak rolled back"],
    "seconds": 103.0,
    "peak_rss_bytes": 681553920,
}  # fmt: skip


@pytest.fixture
def home(tmp_path):
    with variables_of(tmp_path / "state") as root:
        yield root


def made(root: Path) -> Path:
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    return root


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS), ["reference", "train"]])
def test_every_command_has_help_with_examples(words, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:\n  normtweak " in shown
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_the_help_names_exit_codes_and_what_is_not_built(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "0 done, 1 failed, 2 bad input, 130 interrupted, 143 ended by SIGTERM" in shown
    assert "not built yet: ternary, evaluate, finetune, ablate, sweep, polynomial" in shown


def test_the_summary_tells_what_came_of_it():
    assert summary_lines("tiny", RESULT) == [
        ("model", "tiny"),
        ("perplexity", "4.46 ± 0.2 float -> 5.997 ± 0.26 quantized"),
        ("divergence", "KL 0.3431 ± 0.014 nats per token"),
        ("agreement", "top-1 token the same at 71.0 ± 1.0 % of positions"),
        ("size", "197.9 kB, 3.31 bits per quantized weight"),
        ("time", "2 min, 1 of 2 blocks cached, peak memory 681.6 MB"),
        ("export", "/somewhere/exports/tiny-w2g64-0123"),
        ("registered", "tiny version 3 @candidate"),
        ("problem", "block 1: tweak rolled back"),
        ("look at it", "normtweak ui"),
    ]


def test_many_problems_are_counted():
    lines = summary_lines("tiny", RESULT | {"problems": [f"problem {i}" for i in range(9)]})
    assert lines[-2] == ("problem", "4 more, in the block report")


def test_the_summary_is_plain_where_nobody_looks(capsys):
    print_summary("tiny", RESULT)
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == "perplexity:  4.46 ± 0.2 float -> 5.997 ± 0.26 quantized"
    assert shown[-1] == "look at it:  normtweak ui"


def test_the_summary_on_a_terminal_says_the_same(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_summary("tiny", RESULT)
    assert "perplexity  4.46 ± 0.2 float -> 5.997" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.HessianError("block 3 cannot be solved."), "block 3 cannot be solved. The log is "),
        (errors.NonFiniteError("w is NaN"), "w is NaN. The log is "),
        (errors.ProblemError("no problem is allowed"), "no problem is allowed. The log is "),
        (errors.VerificationError("it differs"), "it differs. The log is "),
        (LockTimeoutError("another holds it"), "another holds it. The log is "),
        (
            ServerError("The server ended. Last lines of /a/server.log:\nTraceback\nboom"),
            "The server ended. See /a/server.log. The log is ",
        ),
        (MemoryError(), "memory ran out; lower calibration.samples or calibration.length, or "),
        (OSError(errno.ENOSPC, "No space", "/d/x"), "the disk of /d/x is full; make room and run "),
    ],
)
def test_a_foreseen_failure_is_one_sentence_and_a_log_with_the_rest(error, sentence, home, capsys):
    made(home)
    assert failures.exit_code(error, "quantize") == 1
    text = capsys.readouterr().err
    assert text.startswith(f"normtweak: {sentence}")
    assert text.count("\n") == 1
    log = Path(re.search(r"The log is (\S+)\.\n", text)[1])
    assert log.parent == home / "logs"
    assert type(error).__name__ in log.read_text()


def test_an_unforeseen_failure_leaves_its_traceback_in_a_file(home, capsys):
    made(home)
    try:
        raise KeyError("nobody thought of this")
    except KeyError as error:
        assert failures.exit_code(error, "quantize") == 1
    text = capsys.readouterr().err
    found = re.fullmatch(
        r"normtweak: an unexpected KeyError ended the run \('nobody thought of this'\); the "
        r"traceback is in (\S+)\.\n",
        text,
    )
    log = Path(found[1])
    assert log.parent == home / "logs"
    assert "Traceback (most recent call last)" in log.read_text()
    assert 'raise KeyError("nobody thought of this")' in log.read_text()


def test_without_a_state_root_the_log_goes_to_the_temporary_files(
    home, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert failures.exit_code(RuntimeError("early"), "quantize") == 1
    assert f"the traceback is in {tmp_path}/normtweak-" in capsys.readouterr().err
    assert not home.exists()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [(KeyboardInterrupt(), 130, "interrupted"), (failures.Terminated(), 143, "ended by SIGTERM")],
)
def test_being_stopped_is_no_failure(error, code, text, home, capsys):
    assert failures.exit_code(error, "quantize") == code
    assert capsys.readouterr().err == (
        f"normtweak: {text}; finished stages are kept, and the same command goes on from there.\n"
    )
    assert not home.exists()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    source = save_tiny_model(folder / "model", tiny_config("llama"))
    write_export(folder / "out", source, quantize_all(source, 2, 32, False), {}, ExportConfig())
    return folder / "out"


def test_verify_tells_what_was_compared_and_makes_no_state(export, home, capsys):
    assert main(["verify", str(export)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{export}: the reader finds what was quantized"
    assert lines[2] == "weights: 19 tensors equal bit for bit, 14 of them dequantized"
    assert lines[4] == "tokenizer: same ids"
    assert not home.exists()


def test_verify_fails_where_the_export_was_altered(export, home, capsys):
    tensors = load_file(export / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_packed"][0, 0] ^= 1
    save_file(tensors, export / "model.safetensors", metadata={"format": "pt"})
    assert main(["verify", str(export)]) == 1
    text = capsys.readouterr().err
    assert text.startswith("normtweak: an independent reader finds something else in ")
    assert "weight of model.layers.1.mlp.up_proj.weight: expected " in text
    assert text.count("\n") == 1


class Typed:
    """A command in a process of its own, with its own state root that tests share."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, folder / "state"
        self.text = folder / "error.txt"

    def start(self, *arguments: str) -> subprocess.Popen:
        ours = ("NORMTWEAK_", "PREFECT_", "MLFLOW_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        with self.text.open("wb") as text:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.cli", *arguments],
                cwd=REPOSITORY,
                env=clean | {"NORMTWEAK_HOME": str(self.root), "OMP_WAIT_POLICY": "PASSIVE"},
                stdout=subprocess.DEVNULL,
                stderr=text,
            )

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
def typed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    write_project(folder)
    source = save_tiny_model(folder / "model", tiny_config("llama", max_position_embeddings=256))
    values = recipe_values(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    broken = folder / "broken"
    broken.mkdir()
    for path in source.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    return Typed(folder)


def test_a_weight_that_is_nan_fails_the_run_in_one_sentence(typed):
    result = typed.folder / "result.json"
    one = typed.start(
        "quantize", str(typed.folder / "recipe.yaml"),
        "--set", f"model.source={typed.folder}/broken", "--result", str(result),
    )  # fmt: skip
    assert one.wait(100) == 1, typed.text.read_text()
    last = typed.plain_text().splitlines()[-1]
    assert re.fullmatch(r"normtweak: .*(nan|finite).* The log is \S+\.log\.", last), last
    log = Path(last.rpartition(" ")[2].rstrip("."))
    assert log.parent == typed.root / "logs"
    assert "NonFiniteError" in log.read_text()
    assert typed.states() == ["FAILED"]
    assert not result.exists()
    assert not list((typed.root / "exports").iterdir())


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_a_run_that_is_stopped_says_so_and_is_not_left_running(typed, number, code, text):
    before = len(read_events(typed.root))
    one = typed.start("quantize", str(typed.folder / "recipe.yaml"), "--set", f"seed={int(number)}")
    end = time.monotonic() + 100
    while not any(e["event"] == "calibrate" for e in read_events(typed.root)[before:]):
        assert one.poll() is None, typed.text.read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    one.send_signal(number)
    assert one.wait(60) == code, typed.text.read_text()
    assert typed.plain_text().splitlines()[-1] == (
        f"normtweak: {text}; finished stages are kept, and the same command goes on from there."
    )
    assert typed.states()[-1] == "CRASHED"


def test_the_result_file_is_what_the_flow_returned(typed):
    result = typed.folder / "result.json"
    one = typed.start(
        "quantize", str(typed.folder / "recipe.yaml"), "--set", "final_tune.enabled=false",
        "--set", "norm_tweak.enabled=false", "--set", "calibration.length=32",
        "--result", str(result),
    )  # fmt: skip
    assert one.wait(110) == 0, typed.text.read_text()
    typed.plain_text()
    values = json.loads(result.read_text())
    assert values["registered"]["name"] == "tiny"
    assert set(values) >= {
        "export_dir", "export_sha256", "metrics", "registered", "blocks", "seconds",
        "peak_rss_bytes", "flow_run_id",
    }  # fmt: skip
    assert not list(result.parent.glob(".tmp-*"))
    assert typed.states()[-1] == "COMPLETED"
