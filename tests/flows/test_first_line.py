"""Every command says what it begins before anything heavy is imported; a mistake stands alone."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from flows.commands import first_line as telling
from tests.flows.tiny_model import ablation_values, ternary_values, write_project

REPOSITORY = Path(__file__).parents[2]
# Ends each command where it tells its first line, and says what was imported and how long it took.
DRIVER = """
import json, os, sys, time
from flows.commands import first_line
class Told(BaseException):
    pass
def tell(line):
    raise Told(line)
first_line.tell = tell
first_line.PATIENCE = 100
for name, arguments in json.load(sys.stdin).items():
    from flows.cli import parse
    began = time.process_time()
    options = parse(arguments)
    try:
        options.run(options)
        told = None
    except Told as line:
        told = str(line)
    heavy = sorted({"torch", "prefect", "mlflow", "transformers", "pandas"} & set(sys.modules))
    print(json.dumps([name, told, heavy, time.process_time() - began]))
"""
LINES = {
    "quantize": "quantize tiny: begins; all state lies under {0}/state",
    "ternary": "ternary tiny-ternary: begins; all state lies under {0}/state",
    "ablate": "ablate tiny-ablation: begins; all state lies under {0}/state",
    "polynomial": "polynomial polynomial-small: begins; all state lies under {0}/state",
    "evaluate": "evaluate {0}/model: begins",
    "compare": "compare {0}/model and reference:llama: begins",
    "verify": "verify {0}/export: opened by a reader without our code",
    "rebuild": "rebuild models:/tiny/1: begins with what the registry holds of it",
    "serve": "serve: reads prefect.yaml and starts the server of Prefect",
    "ui": "ui: starts the pages of MLflow and Prefect",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    recipe = write_project(folder)
    for name, values in (("ternary", ternary_values(folder)), ("ablate", ablation_values(folder))):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    (folder / "export").mkdir()
    (folder / "state").mkdir()
    (folder / "state" / "mlflow.db").touch()  # a rebuild looks whether there is a registry
    manifest = {"export": {"format": "compressed-tensors"}, "tensors": {}, "probe": {}}
    (folder / "export" / "normtweak.json").write_text(json.dumps(manifest))
    model = str(folder / "model")
    commands = {
        "quantize": [str(recipe)],
        "ternary": [str(folder / "ternary.yaml")],
        "ablate": [str(folder / "ablate.yaml")],
        "polynomial": ["conf/polynomial-small.yaml"],
        "evaluate": [model, "--text", str(folder / "evaluation.txt")],
        "compare": [model, "reference:llama", "--text", str(folder / "evaluation.txt")],
        "verify": [str(folder / "export")],
        "rebuild": ["models:/tiny/1"],
        "serve": [],
        "ui": [],
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps({name: [name, *arguments] for name, arguments in commands.items()}),
        cwd=REPOSITORY,
        env={"NORMTWEAK_HOME": str(folder / "state"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return folder, {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("name", LINES)
def test_the_first_line_comes_before_anything_heavy(name, told):
    folder, rows = told
    line, heavy, seconds = rows[name]
    assert line == LINES[name].replace("{0}", str(folder))
    assert heavy == []
    assert seconds < 2


def test_a_check_that_takes_its_time_is_told_of_meanwhile(monkeypatch):
    lines, told = [], threading.Event()
    monkeypatch.setattr(telling, "PATIENCE", 0.01)
    monkeypatch.setattr(telling, "tell", lambda line: (lines.append(line), told.set()))
    with telling.first_line("fetches"):
        assert told.wait(30)
    assert lines == ["fetches"]  # told once


def test_a_check_that_fails_at_once_is_answered_by_its_error_alone(capsys):
    with pytest.raises(ValueError, match="wrong"), telling.first_line("begins"):
        raise ValueError("wrong")
    assert capsys.readouterr().err == ""
    with telling.first_line("begins"):
        pass
    assert capsys.readouterr().err.endswith(" begins\n")
