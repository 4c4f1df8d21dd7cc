import numpy as np
import pandas as pd
import pytest

from normtweak_core.evaluate.channel_drift import ChannelDrift
from tasks.tables.drift import (
    DRIFT,
    STAGES,
    drift_frame,
    stages_of,
)
from tasks.tables.frame import TableError

pytestmark = pytest.mark.usefixtures("root")

BLOCKS, CHANNELS = 3, 5


def stages(names=STAGES) -> dict[str, ChannelDrift]:
    draw = np.random.default_rng(1).random
    shape = (BLOCKS, CHANNELS)
    return {
        name: ChannelDrift(draw(shape), draw(shape), -draw(shape), draw(shape), 4 + draw(shape))
        for name in names
    }


def frame() -> pd.DataFrame:
    return drift_frame(stages())


def test_a_row_is_a_channel_behind_a_block_at_a_stage():
    drift = stages()["norm tweak"]
    row = frame().set_index(["stage", "block", "channel"]).loc[("norm tweak", 2, 4)]
    assert row["mean_float"] == drift.mean_float[2, 4]
    assert row["variance_float"] == drift.variance_float[2, 4]
    assert (row["mean"], row["variance"]) == (drift.mean[2, 4], drift.variance[2, 4])
    assert row["square_error"] == drift.square_error[2, 4]
    assert len(frame()) == 4 * BLOCKS * CHANNELS


def test_a_table_is_read_back_as_it_was_written_and_gives_its_stages_again(tmp_path):
    DRIFT.write(tmp_path / "a.parquet", frame())
    DRIFT.write(tmp_path / "b.parquet", frame())
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = DRIFT.read(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(table, frame())
    shuffled = stages_of(table.sample(frac=1, random_state=2))
    for name, drift in stages().items():
        for field, values in vars(drift).items():
            assert (getattr(shuffled[name], field) == values).all()
    assert list(stages_of(table)) == list(STAGES)
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("stage", "float", r"column stage must satisfy isin\(.*found float"),
        ("block", -1, "column block must satisfy greater_than_or_equal_to"),
        ("channel", "first", "column channel must satisfy coerce_dtype.*found first"),
        ("mean", np.nan, "column mean must satisfy not_nullable; found nan"),
        ("mean_float", -np.inf, "column mean_float must satisfy greater_than.*found -inf"),
        ("variance", -0.5, "column variance must satisfy greater_than_or_equal.*found -0.5"),
        ("variance_float", np.inf, "column variance_float must satisfy less_than.*found inf"),
        ("square_error", 1e-3, r"square_error not below \(mean - mean_float\)\^2; found"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_is_written(tmp_path, column, value, message):
    bad = frame()
    bad[column] = bad[column].astype(object)
    bad.loc[7, column] = value
    with pytest.raises(TableError, match=message):
        DRIFT.write(tmp_path / "drift.parquet", bad)
    assert list(tmp_path.glob("*.parquet")) == []


def test_a_channel_that_repeats_or_is_missing_is_refused():
    twice = frame()
    twice.loc[1, "channel"] = 0
    with pytest.raises(TableError, match="must satisfy multiple_fields_uniqueness"):
        DRIFT.validate(twice)
    with pytest.raises(TableError, match="as many rows as stages x blocks x channels"):
        DRIFT.validate(frame().drop(index=3))
    with pytest.raises(TableError, match="as many rows as stages x blocks x channels"):
        DRIFT.validate(frame().iloc[:0])


def test_a_missing_and_an_unknown_column_are_refused():
    with pytest.raises(TableError, match="found variance"):
        DRIFT.validate(frame().drop(columns="variance"))
    with pytest.raises(TableError, match="must satisfy column_in_schema; found extra"):
        DRIFT.validate(frame().assign(extra=1))


def test_an_error_as_small_as_rounding_makes_it_is_accepted():
    table = frame()
    table["square_error"] = (table["mean"] - table["mean_float"]) ** 2 * (1 - 1e-12)
    DRIFT.validate(table)


def test_a_torn_or_absent_table_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "drift.parquet"
    DRIFT.write(path, frame())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TableError, match="must be a parquet file"):
        DRIFT.read(path)
    path.unlink()
    with pytest.raises(TableError, match="must be a parquet file"):
        DRIFT.read(path)
