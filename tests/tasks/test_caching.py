import base64
import hashlib
import json
import os
import sys
import threading

import pytest
from pydantic import BaseModel

from tasks.engine.events import read_events
from tests.tasks.stage_results import StageResult

# Whichever test comes first also pays for the tables of Prefect's database.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def flow(engine):
    from tests.tasks.flow_under_test import define_flow

    return define_flow()


@pytest.fixture
def package(tmp_path, monkeypatch, caching):
    """A package whose modules cannot be imported, only read."""
    folder = tmp_path / "fakecore"
    (folder / "deep").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "top": "from fakecore.deep import middle\nimport os\n",
        "deep/__init__": "",
        "deep/middle": "def f():\n    from ..lazy import g\n    from . import sibling\n",
        "deep/sibling": "",
        "lazy": "import fakecore.last as l\n",
        "last": "from pathlib import Path\n",
        "unrelated": "",
    }.items():
        (folder / f"{name}.py").write_text(text + "raise RuntimeError('executed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def clear():
        for cached in (caching.source_fingerprint, caching._read_source, caching._source_file):
            cached.cache_clear()

    def fingerprint(*modules):
        clear()
        return caching.source_fingerprint(modules)

    yield folder, fingerprint
    clear()


def executed(start: int = 0) -> list[str]:
    return [event["stage"] for event in read_events()[start:] if event["event"] == "executed"]


# Keys


@pytest.mark.parametrize(
    "module", ["top", "deep/middle", "deep/sibling", "lazy", "last", "__init__", "deep/__init__"]
)
def test_the_code_of_everything_a_stage_imports_counts(package, module):
    folder, fingerprint = package
    before = fingerprint("fakecore.top")
    with (folder / f"{module}.py").open("a") as file:
        file.write("x = 1\n")
    assert fingerprint("fakecore.top") != before


def test_other_code_does_not_count(package):
    folder, fingerprint = package
    before = fingerprint("fakecore.top")
    (folder / "unrelated.py").write_text("x = 2\n")
    assert fingerprint("fakecore.top") == before
    assert fingerprint("fakecore.deep.middle") != before


def test_a_source_that_does_not_exist_is_an_error(package):
    _, fingerprint = package
    with pytest.raises(ModuleNotFoundError, match=r"names fakecore.absent as its source; no such"):
        fingerprint("fakecore.absent")


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_the_versions_of_the_libraries_count(package, monkeypatch, caching, library):
    _, fingerprint = package
    before = fingerprint("fakecore.top")
    real = caching.importlib.metadata.version
    monkeypatch.setattr(
        caching.importlib.metadata,
        "version",
        lambda name: "0.0.1" if name == library else real(name),
    )
    assert fingerprint("fakecore.top") != before


# Results


def test_no_flipped_byte_of_a_record_changes_the_result(flow, engine, caching):
    from prefect.results import ResultRecord

    flow(start=100)
    (path,) = [
        path
        for path in (engine / "results").glob("first-*")
        if caching.cached_result(path.name).value == 100
    ]
    good = path.read_bytes()
    result = ResultRecord.deserialize(good).result
    assert isinstance(result, StageResult)
    unnoticed = 0
    for index in range(len(good)):
        bad = bytearray(good)
        bad[index] ^= 1
        try:
            read = ResultRecord.deserialize(bytes(bad)).result
        except Exception:
            continue
        unnoticed += 1
        assert read == result
    # The version of Prefect and the storage key, say, which do not touch the result.
    assert unnoticed < len(good) / 2


def test_only_results_of_modules_can_be_stored(caching):
    from tasks.engine.artifacts import Result

    class Local(BaseModel):
        a: int

    class LocalResult(Result):
        a: int

    for value in ({"a": 1}, Local(a=1), LocalResult(a=1), None):
        with pytest.raises(TypeError, match="A stage must return a Result declared in a module; f"):
            caching.StageSerializer().dumps(value)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """The name of a module that leaves a mark when it is imported, and the mark."""
    mark = tmp_path / "imported"
    (tmp_path / "a_trap.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "class Kind:\n    model_validate = staticmethod(lambda data: data)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "a_trap", mark
    sys.modules.pop("a_trap", None)


def record_of(class_: str, data: dict) -> str:
    text = json.dumps({"class": class_, "data": data}, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


@pytest.mark.parametrize("class_", ["a_trap:Kind", "os:system", "tasks.engine.artifacts:Result"])
def test_a_record_names_a_result_and_nothing_else(root, caching, trap, class_):
    stored = record_of(class_, {})
    with pytest.raises(ValueError, match=f"a stage record must hold a result; found {class_}"):
        caching.StageSerializer().loads(stored.encode())
    (root / "results" / "block-0").write_text(json.dumps({"result": stored}))
    assert caching.cached_result("block-0") is None
    assert not trap[1].exists()


@pytest.mark.parametrize("kind", ["pickle", "json decoder", "none named", "old form"])
def test_a_record_of_another_serializer_is_made_again_and_never_read(engine, caching, trap, kind):
    from prefect import flow, task

    module, mark = trap

    @task(
        cache_policy=caching.stage_policy(),
        persist_result=True,
        result_serializer=caching.StageSerializer(),
    )
    def stage(key):
        return StageResult(stage=key, value=7, file=reference, seconds=0)

    @flow
    def once():
        return stage(key)

    from tasks.engine.artifacts import publish_json

    reference = publish_json("numbers", "k", {"a": 1})
    key = f"foreign-{kind.replace(' ', '-')}"
    pickled = base64.b64encode(f"c{module}\nKind\n.".encode()).decode()
    decoder = {"type": "json", "object_decoder": f"{module}.Kind"}
    foreign = {
        "pickle": {"metadata": {"serializer": {"type": "pickle"}}, "result": pickled},
        "json decoder": {"metadata": {"serializer": decoder}, "result": "{}"},
        "none named": {"metadata": {}, "result": pickled},
        "old form": {"serializer": {"type": "pickle"}, "data": pickled},
    }
    (engine / "results" / key).write_text(json.dumps(foreign[kind]))
    assert once() == StageResult(stage=key, value=7, file=reference, seconds=0)
    assert not mark.exists()
    assert caching.cached_result(key).value == 7


def test_an_absent_or_broken_record_is_no_cached_result(root, caching):
    assert caching.cached_result("block-0") is None
    (root / "results" / "block-0").write_text('{"result": "0\\n{}"}')
    assert caching.cached_result("block-0") is None


# On the engine


def test_a_second_run_executes_nothing_and_damage_only_what_was_damaged(flow, engine, caching):
    start = len(read_events())
    assert flow(start=200) == [200, 201, 202]
    assert flow(start=200) == [200, 201, 202]
    assert executed(start) == ["first", "second", "third"]
    published = [e for e in read_events()[start:] if e["event"] == "published"]
    second = engine / published[1]["path"]

    os.truncate(second, 3)
    assert flow(start=200) == [200, 201, 202]
    assert executed(start)[3:] == ["second"]
    data = bytearray(second.read_bytes())
    data[7] ^= 1
    second.write_bytes(data)
    (engine / "results" / published[0]["key"]).write_bytes(b"")
    assert flow(start=200) == [200, 201, 202]
    assert executed(start)[4:] == ["first", "second"]
    # A changed input changes the whole chain.
    assert flow(start=201) == [201, 202, 203]
    assert executed(start)[6:] == ["first", "second", "third"]


def test_other_parameters_neither_disturb_caching_nor_are_walked_through(engine, caching):
    from prefect import flow, task
    from prefect.utilities.annotations import quote

    class Walked(list):
        def __iter__(self):
            raise AssertionError("Prefect walked through a quoted parameter")

    runs = []

    @task(
        cache_policy=caching.stage_policy(),
        persist_result=True,
        result_serializer=caching.StageSerializer(),
    )
    def stage(key, config, context):
        runs.append(context["lock"])
        return config

    from tasks.engine.artifacts import publish_json

    file = publish_json("numbers", "k", {"a": 1})
    result = StageResult(stage="stage", value=1, file=file, seconds=0)

    @flow
    def once():
        context = {"lock": threading.Lock(), "big": Walked(range(1000)), "call": lambda: None}
        return stage("same-key-1", result, quote(context))

    assert isinstance(once(), StageResult)
    assert once() == result
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, "Task stage needs a cache key; found None"),
        ("", "Task stage needs a cache key; found ''"),
        (lambda context, parameters: 1 / 0, "Task stage needs a cache key; computing it failed"),
        (lambda context, parameters: parameters["absent"], "failed: KeyError..absent"),
    ],
)
def test_a_task_without_a_usable_key_fails_instead_of_running_uncached(
    engine, caching, key, message
):
    from prefect import flow, task

    runs = []

    @task(cache_policy=caching.stage_policy(key if callable(key) else None), persist_result=True)
    def stage(key):
        runs.append(key)

    @flow
    def once():
        stage("some-key" if callable(key) else key)

    with pytest.raises(caching.CacheKeyError, match=message):
        once()
    assert runs == []


def test_this_process_reads_results_of_the_session_root(engine_environment, caching):
    prefect_settings = sys.modules["prefect.settings"].get_current_settings()
    assert prefect_settings.results.local_storage_path == engine_environment / "results"
