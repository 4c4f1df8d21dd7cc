"""Data sets of the hub, with what stands for it: no test reaches the network."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from normtweak_core.calibration import hub_data
from normtweak_core.calibration.hub_data import hub_data_revision, local_data, split_hub_name
from normtweak_core.errors import InputError
from tests.children import QUICK

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def record(cache, commit):
    ref = cache / "datasets--owner--data" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text(commit)


def answering(monkeypatch, answer):
    asked = []

    def dataset_info(self, name, **options):
        asked.append(name)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(sha=answer)

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    return asked


def test_the_hub_tells_the_commit_whatever_the_cache_says(hub_cache, monkeypatch):
    record(hub_cache, OTHER)
    asked = answering(monkeypatch, COMMIT)
    assert hub_data_revision("owner/data:german") == COMMIT
    assert asked == ["owner/data"]


@pytest.mark.parametrize("answer", [httpx.ConnectError("no route"), httpx.ReadTimeout("slow")])
def test_a_hub_out_of_reach_leaves_the_commit_last_seen(hub_cache, monkeypatch, caplog, answer):
    record(hub_cache, f"{OTHER}\n")
    answering(monkeypatch, answer)
    assert hub_data_revision("owner/data") == OTHER
    assert "data set owner/data is the one last seen here" in caplog.text


def test_offline_nothing_is_asked(hub_cache, monkeypatch):
    record(hub_cache, OTHER)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    asked = answering(monkeypatch, COMMIT)
    assert hub_data_revision("owner/data") == OTHER
    assert asked == []


def test_a_commit_that_nothing_knows_is_refused(monkeypatch):
    answering(monkeypatch, httpx.ConnectError("no route"))
    message = "data set owner/data cannot be read: .*its cache knows no commit of it. Connect once"
    with pytest.raises(InputError, match=message):
        hub_data_revision("owner/data")


def test_what_the_hub_refuses_is_refused_with_its_reason(monkeypatch):
    response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
    answering(monkeypatch, HfHubHTTPError("404\nno such data set", response=response))
    message = r"a hub data set that you can read; owner/data is not: 404 no such data set"
    with pytest.raises(InputError, match=message):
        hub_data_revision("owner/data")


def test_remembering_asks_for_the_branch_even_where_there_is_no_such_file(monkeypatch):
    asked = []

    def download(name, file, **options):
        asked.append((name, file, options))
        raise huggingface_hub.errors.EntryNotFoundError("no README")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    hub_data.remember_revision("owner/data")
    assert asked == [("owner/data", "README.md", {"repo_type": "dataset"})]


def test_a_path_is_local_where_something_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("a")
    assert local_data("~/a.txt") == local_data(str(tmp_path / "a.txt")) == tmp_path / "a.txt"
    assert local_data("owner/data") is None
    assert split_hub_name("owner/data:german") == ("owner/data", "german")
    assert split_hub_name("owner/data") == ("owner/data", None)


READ = """
import sys
from normtweak_core.calibration.dataset import _texts
try:
    print(sorted(_texts("owner/data", 0, sys.argv[1])))
except ValueError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A home of the hub's libraries in which `datasets` once prepared a hub data set."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "datasets" / "owner___data" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    rows = datasets.Dataset.from_dict({"text": ["one", "two"]})
    rows.save_to_disk(home / "saved")
    shutil.copy(next((home / "saved").glob("*.arrow")), folder / "data-train.arrow")
    train = {"name": "train", "num_bytes": 1, "num_examples": 2, "dataset_name": "data"}
    info = {
        "config_name": "default", "dataset_name": "data", "builder_name": "parquet",
        "version": "0.0.0", "features": {"text": {"dtype": "string", "_type": "Value"}},
        "splits": {"train": train},
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return home


@pytest.mark.parametrize(
    ("commit", "answer"),
    [
        (COMMIT, "['one', 'two']"),
        (OTHER, f"must be read at commit {OTHER}; only commit {COMMIT} is here: connect to the"),
    ],
)
def test_offline_a_copy_of_another_commit_is_not_taken_for_the_one_asked(prepared, commit, answer):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(prepared)}
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", QUICK + READ, commit],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert answer in done.stdout, done.stderr
