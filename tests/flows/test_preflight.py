import os
import shutil
from collections import namedtuple

import pytest

from flows.checks import machine as budget
from flows.checks.inputs import only_local
from flows.checks.preflight import preflight
from flows.checks.written_places import check_disk, check_state_root
from flows.recipes.quantize import Recipe
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import EvaluationConfig
from normtweak_core.model.source import ModelFolder
from tasks.engine.progress import readable_bytes
from tests.flows.stage_keys import TASK_ITEMS
from tests.flows.tiny_model import (
    HIDDEN,
    SHAPES,
    recipe_values,
    variables_of,
    write_model,
    write_project,
)

WEIGHTS = 2 * sum(rows * columns for rows, columns in SHAPES.values())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preflight")
    write_project(folder)
    with variables_of(folder / "state"):
        yield folder


def recipe(folder, **changes):
    values = recipe_values(folder)
    for section, keys in changes.items():
        values[section] = values.get(section, {}) | keys
    return Recipe.parse(values)


def test_the_sizes_of_a_model_come_from_its_headers(project):
    shape = budget.model_shape(project / "model")
    assert (shape.num_blocks, shape.hidden, shape.vocabulary) == (2, HIDDEN, 96)
    assert shape.linear_weights == WEIGHTS
    assert shape.parameters == WEIGHTS + 96 * HIDDEN + 5 * HIDDEN
    assert shape.widest_input == 128


def test_disk_is_counted_from_the_recipe(project):
    ready = preflight(recipe(project), project / "state")
    groups = WEIGHTS // 64
    rest = 96 * HIDDEN + 5 * HIDDEN
    assert list(ready.disk.values()) == [
        8 * 16 * 8,
        4 * 8 * 16 * HIDDEN * 4,
        2 * (WEIGHTS + 5 * groups),
        2 * (WEIGHTS // 4 + 3 * groups + 2 * rest),
        32 << 20,
    ]


@pytest.mark.parametrize(
    ("changes", "item", "factor"),
    [
        ({"calibration": {"samples": 16}}, "streams (two boundaries of two streams)", 2),
        ({"model": {"dtype": "bfloat16"}}, "streams (two boundaries of two streams)", 0.5),
        ({"calibration": {"length": 32}}, "calibration set", 2),
    ],
)
def test_what_is_written_grows_with_what_is_asked(project, changes, item, factor):
    values = recipe_values(project)
    changes = {key: values.get(key, {}) | inner for key, inner in changes.items()}
    before = preflight(recipe(project), project / "state").disk[item]
    assert preflight(recipe(project, **changes), project / "state").disk[item] == factor * before


def test_a_disk_that_is_just_large_enough_is_accepted(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 0, 1000))
    root = tmp_path / "a" / "b"
    check_disk({"streams": 600, "export": 400}, root, lambda: pytest.fail("needs no look"))
    with pytest.raises(
        InputError, match=r"may write 1\.0 kB under .*/a/b, 601 bytes of it streams; its disk has 1"
    ):
        check_disk({"streams": 601, "export": 400}, root)


def test_what_lies_there_already_needs_no_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 0, 300))
    disk = {"streams": 600, "blocks": 1000, "export": 400}
    check_disk(disk, tmp_path, lambda: {"streams": 1.0, "blocks": 0.9, "export": 0.5})
    with pytest.raises(InputError, match=r"may write 301 bytes under .*, 200 bytes of it export"):
        check_disk(
            disk | {"blocks": 1010}, tmp_path, lambda: {"streams": 1, "blocks": 0.9, "export": 0.5}
        )


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    # Tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"must be writable, but .* is not; choose a folder you"):
        check_state_root(tmp_path / "state")


def test_the_same_text_for_calibration_and_evaluation_is_told(project):
    same = {"perplexity": {"path": str(project / "calibration.txt")}}
    ready = preflight(recipe(project, evaluation=same), project / "state")
    assert ready.warnings == [
        "calibration.path and evaluation.perplexity.path are the same file: the perplexity is "
        "measured on text that the quantized model was calibrated with"
    ]


def test_a_registry_that_does_not_answer_is_told_before_the_start(project, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"server that answers; http://127\.0\.0\.1:9 does not"):
        preflight(recipe(project), project / "state")


def test_a_reader_whose_making_was_interrupted_is_none(project, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.checks.preflight.REPOSITORY", tmp_path)
    reader = tmp_path / ".venv-reader-gptq"
    (reader / "bin").mkdir(parents=True)
    (reader / "bin" / "python").touch()  # `python -m venv` makes it before anything is installed
    wanted = recipe(project, export={"format": "gptq"})
    with pytest.raises(InputError, match=r"absent or not complete\. Run `make reader-gptq`"):
        preflight(wanted, project / "state")
    (reader / ".complete").touch()
    preflight(wanted, project / "state")


@pytest.mark.parametrize("files", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_each_kind_of_vocabulary_that_readers_open_is_accepted(project, tmp_path, files):
    model = write_model(tmp_path / "model")
    for name in {"vocab.json", "merges.txt"} & set(files):
        (model / name).write_text("{}")
        (model / "tokenizer.json").unlink(missing_ok=True)
    wanted = recipe(project, model={"source": str(model)})
    assert preflight(wanted, project / "state").source.path == model
    (model / files[-1]).rename(model / "tokenizer.model")
    with pytest.raises(InputError, match=r"lacks tokenizer\.json \(or vocab\.json and merges\.txt"):
        preflight(wanted, project / "state")


@pytest.mark.parametrize(
    ("source", "revision", "local"),
    [("text", None, True), ("text", "c0ffee", False), ("hub/data", None, False)],
)
def test_the_hub_is_left_out_where_nothing_comes_from_it(project, source, revision, local):
    data = {} if source == "text" else {"source": "dataset", "path": source}
    wanted = recipe(project, calibration=recipe_values(project)["calibration"] | data)
    source = ModelFolder(project, "x", revision)
    assert only_local(wanted.calibration, wanted.evaluation, source) is local


def test_tasks_without_files_need_the_hub(project):
    source = ModelFolder(project, "x", None)
    for data, local in ((None, False), (str(TASK_ITEMS), True)):
        named = EvaluationConfig(tasks=["piqa"], data=data)
        assert only_local(recipe(project).calibration, named, source) is local


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2.5e13, "25.0 TB")]
)
def test_sizes_are_readable(count, text):
    assert readable_bytes(count) == text
