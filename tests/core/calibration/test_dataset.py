import json
import os
import subprocess
import sys

import datasets
import pytest

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.dataset import dataset_windows
from normtweak_core.calibration.sets import build_calibration_set
from normtweak_core.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def quiet_progress():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def rows(texts):
    return datasets.Dataset.from_list([{"id": i, "text": text} for i, text in enumerate(texts)])


@pytest.fixture(scope="module")
def places(rows, tmp_path_factory):
    """Return the same documents in every place a data set can be read from."""
    root = tmp_path_factory.mktemp("data")
    (root / "folder").mkdir()
    rows.to_parquet(root / "folder" / "train.parquet")
    rows.to_parquet(root / "rows.parquet")
    rows.save_to_disk(root / "saved")
    datasets.DatasetDict({"train": rows}).save_to_disk(root / "splits")
    datasets.DatasetDict({"test": rows}).save_to_disk(root / "test only")
    with (root / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    arrow = next((root / "saved").glob("*.arrow"))
    os.link(arrow, root / "rows.arrow")
    return root


@pytest.mark.parametrize(
    "place", ["rows.jsonl", "rows.parquet", "rows.arrow", "folder", "saved", "splits"]
)
def test_windows_are_whole_documents_in_a_seeded_order(place, places, texts, llama_tokenizer):
    windows, documents = dataset_windows(str(places / place), llama_tokenizer, 16, 24, seed=0)
    stream = windows.flatten().tolist()
    known = {tuple(llama_tokenizer(text).input_ids): i for i, text in enumerate(texts)}
    order, document = [], []
    for token in [*stream[1:], 0]:  # token 0 begins every document
        if token == 0:
            order.append(known.get((0, *document)))
            document = []
        else:
            document.append(token)
    assert None not in order[:-1]  # the last document may be cut
    assert len(set(order)) == len(order) == documents
    assert order != sorted(order[:-1]) + order[-1:]


def test_the_seed_decides_the_order_and_every_place_agrees(places, llama_tokenizer):
    def ids(place, seed):
        return dataset_windows(str(places / place), llama_tokenizer, 8, 24, seed)[0].tolist()

    assert ids("rows.arrow", 0) == ids("rows.jsonl", 0) == ids("saved", 0)
    assert ids("rows.arrow", 0) != ids("rows.arrow", 1)


def test_a_stream_is_read_no_further_than_needed(places, llama_tokenizer):
    seen = []
    _, documents = dataset_windows(
        str(places / "rows.arrow"), llama_tokenizer, 2, 24, 0, lambda *at: seen.append(at)
    )
    assert seen == [(48, 48)]
    assert documents < 5


def test_a_recipe_reaches_a_data_set(places, llama_tokenizer):
    config = CalibrationConfig(source="dataset", path=str(places / "saved"), samples=8)
    made = build_calibration_set(config, llama_tokenizer, None, 24, 0)
    windows, documents = dataset_windows(str(places / "saved"), llama_tokenizer, 8, 24, 0)
    assert made.input_ids.equal(windows)
    assert (made.source, made.facts) == ("dataset", {"documents": documents})


@pytest.mark.parametrize("place", ["rows.jsonl", "folder", "saved"])
def test_a_tilde_is_the_home_folder(place, places, llama_tokenizer, monkeypatch):
    monkeypatch.setenv("HOME", str(places))
    config = CalibrationConfig(source="dataset", path=f"~/{place}", samples=8)
    made = build_calibration_set(config, llama_tokenizer, None, 24, 0)
    expected, _ = dataset_windows(str(places / place), llama_tokenizer, 8, 24, 0)
    assert made.input_ids.equal(expected)


def test_too_few_windows_are_refused_with_the_count(places, texts, llama_tokenizer):
    tokens = sum(len(llama_tokenizer(text).input_ids) for text in texts)
    message = rf"asks for 9999 windows of 24 tokens; data set .* holds {tokens // 24}: choose"
    with pytest.raises(InputError, match=message):
        dataset_windows(str(places / "rows.arrow"), llama_tokenizer, 9999, 24, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", "<a/>", r"must end in \.json, \.jsonl, .*; found .*a\.xml: convert it"),
        ("a.jsonl", '{"body": "x", "id": 1}\n', r'string field "text"; found fields body, id: ren'),
        (
            "a.jsonl",
            "{not json\n",
            r"path must be .*; data set .*jsonl cannot: JSON",
        ),
        (
            "a.parquet",
            "not parquet",
            r"path must be .*; data set .*parquet cannot: Parquet",
        ),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(tmp_path, llama_tokenizer, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        dataset_windows(str(path), llama_tokenizer, 8, 24, 0)


def test_a_folder_without_data_is_refused(tmp_path, llama_tokenizer):
    with pytest.raises(InputError, match=r"can be read; data set .* cannot: .*contain any data"):
        dataset_windows(str(tmp_path), llama_tokenizer, 8, 24, 0)


def test_a_data_set_without_a_training_split_is_refused(places, llama_tokenizer):
    with pytest.raises(InputError, match="must have a split train; found test: give the folder"):
        dataset_windows(str(places / "test only"), llama_tokenizer, 8, 24, 0)


def test_a_hub_name_that_cannot_be_reached_is_refused():
    code = (
        "from normtweak_core.calibration.dataset import dataset_windows\n"
        "from normtweak_core.errors import InputError\n"
        "try:\n    dataset_windows('nobody/nothing', None, 8, 24, 0)\n"
        "except InputError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "can be read; data set nobody/nothing cannot: Couldn't" in done.stdout, done.stderr
