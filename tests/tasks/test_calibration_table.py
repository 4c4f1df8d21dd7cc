import pandas as pd
import pytest
import torch

from normtweak_core.calibration.sets import CalibrationSet
from normtweak_core.reference.architectures import train_tokenizer
from tasks.tables.calibration import (
    calibration_frame,
    calibration_table,
)
from tasks.tables.frame import TableError

VOCABULARY = 280


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a small house near the river " * 3], "llama")


@pytest.fixture
def frame(tokenizer, seeded):
    ids = torch.randint(len(tokenizer), (5, 7), generator=seeded(0))
    made = CalibrationSet(ids, "text")
    return calibration_frame(made, tokenizer, [0.5, 1.0, 1.5, 2.0, 2.5])


def changed(frame, column, row, value):
    copy = frame.copy()
    copy[column] = copy[column].astype(object)
    copy.at[row, column] = value
    return copy


def test_a_table_holds_every_window_and_its_text(frame, tokenizer, seeded):
    ids = torch.randint(len(tokenizer), (5, 7), generator=seeded(0)).tolist()
    assert frame["input_ids"].tolist() == ids
    assert frame["text"].tolist() == [tokenizer.decode(row) for row in ids]
    assert frame["sample_id"].tolist() == [0, 1, 2, 3, 4]
    assert set(frame["n_tokens"]) == {7}


def test_a_table_comes_back_as_it_was_written(tmp_path, frame):
    path = tmp_path / "table.parquet"
    calibration_table(VOCABULARY + 50).write(path, frame)
    back = calibration_table(VOCABULARY + 50).read(path)
    assert [list(map(int, row)) for row in back["input_ids"]] == frame["input_ids"].tolist()
    for column in ("sample_id", "n_tokens", "text", "nll", "source"):
        assert back[column].tolist() == frame[column].tolist()
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_table_gives_the_same_bytes(tmp_path, frame):
    calibration_table(400).write(tmp_path / "a", frame)
    calibration_table(400).write(tmp_path / "b", frame)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("sample_id", 1, 0, "column sample_id must satisfy .*unique"),
        ("n_tokens", 2, 8, "n_tokens equal to the number of input_ids; found"),
        (
            "input_ids",
            3,
            [0, 1, 2, 3, 4, 5, 400],
            "column input_ids must satisfy ids from 0 to 399",
        ),
        ("input_ids", 3, [0, 1, 2, 3, 4, 5, -1], "column input_ids must satisfy ids from 0 to 399"),
        ("nll", 0, float("nan"), "column nll must satisfy not_nullable"),
        ("nll", 0, float("inf"), "column nll must satisfy less_than"),
        ("nll", 0, "much", "column nll must satisfy coerce_dtype"),
        ("source", 4, "guess", "column source must satisfy isin"),
        ("text", 4, None, "column text must satisfy not_nullable"),
    ],
)
def test_a_cell_that_cannot_be_true_is_refused(tmp_path, frame, column, row, value, message):
    bad = changed(frame, column, row, value)
    with pytest.raises(TableError, match=message):
        calibration_table(400).write(tmp_path / "a", bad)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_was_altered_on_disk_is_refused_on_read(tmp_path, frame):
    frame.assign(n_tokens=8).to_parquet(tmp_path / "a")
    with pytest.raises(TableError, match="n_tokens equal to the number of input_ids"):
        calibration_table(400).read(tmp_path / "a")


def test_a_table_of_another_vocabulary_is_refused_on_read(tmp_path, frame):
    calibration_table(400).write(tmp_path / "a", frame)
    with pytest.raises(TableError, match="ids from 0 to 9"):
        calibration_table(10).read(tmp_path / "a")


def test_a_column_more_or_less_is_refused(frame):
    with pytest.raises(TableError, match="column_in_schema; found extra"):
        calibration_table(400).validate(frame.assign(extra=1))
    with pytest.raises(TableError, match="column_in_dataframe; found nll"):
        calibration_table(400).validate(frame.drop(columns="nll"))


def test_validation_does_not_change_its_input(frame):
    kept = frame.copy(deep=True)
    calibration_table(400).validate(frame)
    pd.testing.assert_frame_equal(frame, kept)


def test_a_torn_or_missing_file_is_refused(tmp_path, frame):
    path = tmp_path / "a"
    with pytest.raises(TableError, match=r"must be a parquet file; .*make the table again"):
        calibration_table(400).read(path)
    calibration_table(400).write(path, frame)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(TableError, match="must be a parquet file"):
        calibration_table(400).read(path)
