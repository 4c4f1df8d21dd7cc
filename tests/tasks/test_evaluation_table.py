"""The table of an evaluation: what it holds, what it refuses, and what is read back."""

import json
import math

import pytest

from normtweak_core.evaluate.metric import stderr_name
from tasks.tables.evaluation import (
    EVALUATION,
    evaluation_frame,
)
from tasks.tables.frame import TableError

METRICS = {
    "perplexity/float": 12.5,
    "perplexity/float_stderr": 0.5,
    "kl/mean": 0.25,
    "kl/stderr": 0.125,
    "piqa/acc/drop": 0.1,
    "piqa/acc/drop_stderr": 0.05,
    "piqa/acc/mcnemar_p": 0.5,
    "size_bytes": 1000.0,
}


def table(**changes):
    return evaluation_frame(METRICS | changes, 64, {"piqa": ("1.0", 10)}, 3, {"torch": "2"})


def test_every_number_stands_once_with_its_error_and_what_it_rests_on():
    rows = table().set_index("measure")
    assert list(rows.index) == sorted(name for name in METRICS if "stderr" not in name)
    assert rows.loc["perplexity/float", ["value", "stderr", "count", "unit", "task"]].tolist() == [
        12.5, 0.5, 64, "windows", "",
    ]  # fmt: skip
    assert rows.loc["kl/mean", "stderr"] == 0.125
    drop = rows.loc["piqa/acc/drop"]
    assert drop[["stderr", "count", "unit", "task", "task_version"]].tolist() == [
        0.05, 10, "items", "piqa", "1.0",
    ]  # fmt: skip
    assert math.isnan(rows.loc["piqa/acc/mcnemar_p", "stderr"])
    assert set(rows["seed"]) == {3}
    assert {one for text in rows["versions"] for one in json.loads(text).items()} == {
        ("torch", "2")
    }


def test_the_name_of_a_standard_error_follows_from_its_value():
    assert stderr_name("kl/mean") == "kl/stderr"
    assert stderr_name("top1_agreement") == "top1_agreement_stderr"


def test_a_table_is_read_as_it_was_written_and_equal_ones_are_equal_files(tmp_path, root):
    for name in ("a", "b"):
        EVALUATION.write(tmp_path / name, table())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert EVALUATION.read(tmp_path / "a").equals(EVALUATION.validate(table()))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("stderr", -1.0, "column stderr must satisfy greater_than_or_equal_to(0); found -1.0"),
        ("count", 0, "column count must satisfy greater_than_or_equal_to(1); found 0"),
        ("unit", "tokens", "column unit must satisfy isin(['windows', 'items']); found tokens"),
        ("value", math.nan, "column value must satisfy not_nullable; found nan"),
        ("measure", "size_bytes", "column measure must satisfy field_uniqueness; found size_bytes"),
    ],
)
def test_a_table_with_a_wrong_value_is_neither_written_nor_read(
    tmp_path, root, column, value, message
):
    wrong = table()
    wrong.loc[0, column] = value
    with pytest.raises(TableError) as raised:
        EVALUATION.write(tmp_path / "table", wrong)
    assert message in str(raised.value)
    assert "evaluate again" in str(raised.value)
    assert not (tmp_path / "table").exists()
    wrong.to_parquet(tmp_path / "table", index=False)
    with pytest.raises(TableError, match=f"column {column} must satisfy"):
        EVALUATION.read(tmp_path / "table")


def test_a_column_too_many_or_too_few_is_named():
    with pytest.raises(TableError, match="other"):
        EVALUATION.validate(table().assign(other=1))
    with pytest.raises(TableError, match="seed"):
        EVALUATION.validate(table().drop(columns="seed"))


def test_a_file_that_is_missing_or_torn_is_said(tmp_path, root):
    with pytest.raises(TableError, match=r"must be a parquet file; .*: evaluate again"):
        EVALUATION.read(tmp_path / "nothing")
    EVALUATION.write(tmp_path / "whole", table())
    (tmp_path / "torn").write_bytes((tmp_path / "whole").read_bytes()[:100])
    with pytest.raises(TableError, match="must be a parquet file"):
        EVALUATION.read(tmp_path / "torn")
