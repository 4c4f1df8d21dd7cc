import math

import pandas as pd
import pytest

from normtweak_core.quantization.report import BlockReport, LayerReport
from normtweak_core.tweak.report import TweakReport
from tasks.tables.blocks import (
    BITS,
    BLOCKS,
    block_frame,
    tweak_outcome,
)
from tasks.tables.frame import TableError

pytestmark = pytest.mark.usefixtures("root")


def layer_report(name: str, bits: int = 2, error: float = 0.25) -> LayerReport:
    return LayerReport(
        layer=name,
        bits=bits,
        percdamp=0.01,
        damping_raised=False,
        ridge=0.02,
        ridge_raised=False,
        dead_columns=0,
        weight_error=error,
        output_error=error / 2,
    )


def block_report(block: int, accepted: bool | None, drift: float, bits: int = 2) -> BlockReport:
    return BlockReport(
        block=block,
        layers=[layer_report("attention.q", bits), layer_report("mlp.up", bits)],
        left_float=[],
        tweak=None
        if accepted is None
        else TweakReport(
            lr=1e-3,
            held_out_before=0.2,
            held_out_after=0.1,
            distance_before=0.5,
            distance_after=0.4,
            accepted=accepted,
            share=1.0 if accepted else 0.0,
        ),
        drift_quantized=drift,
        drift_tweaked=drift * 0.75,
        mean_shift_quantized=0.01,
        mean_shift_tweaked=0.005,
    )


def frame(bits: int = 2) -> pd.DataFrame:
    blocks = [block_report(0, True, 0.2, bits), block_report(1, False, 0.4, bits)]
    return block_frame(blocks, [block_report(0, None, 0.5), block_report(1, None, 0.7)])


def test_a_row_is_a_layer_and_carries_what_its_block_says():
    row = frame().iloc[3]
    assert (row["block"], row["layer"], row["bits"]) == (1, "mlp.up", 2)
    assert (row["weight_error"], row["output_error"]) == (0.25, 0.125)
    assert (row["ridge"], row["ridge_raised"]) == (0.02, False)
    assert row["drift_rtn"] == 0.7
    assert row["drift_quantized"] == 0.4
    assert row["drift_tweaked"] == pytest.approx(0.3)
    assert frame()["tweak"].tolist() == ["kept", "kept", "rolled back", "rolled back"]


def test_a_block_without_a_tweak_says_so():
    assert tweak_outcome(block_report(0, None, 0.1)) == "off"


@pytest.mark.parametrize("bits", BITS)
def test_a_table_is_read_back_as_it_was_written(tmp_path, bits):
    BLOCKS.write(tmp_path / "blocks.parquet", frame(bits))
    pd.testing.assert_frame_equal(BLOCKS.read(tmp_path / "blocks.parquet"), frame(bits))


def test_equal_tables_give_equal_bytes_and_nothing_else_is_left_behind(tmp_path):
    BLOCKS.write(tmp_path / "a.parquet", frame())
    BLOCKS.write(tmp_path / "b.parquet", frame())
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert {path.name for path in tmp_path.glob("*.parquet")} == {"a.parquet", "b.parquet"}
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("bits", 5, r"column bits must satisfy isin\(.*\); found 5"),
        ("weight_error", math.nan, "column weight_error must satisfy not_nullable; found nan"),
        ("output_error", math.inf, "column output_error must satisfy less_than.*; found inf"),
        ("ridge", math.inf, "column ridge must satisfy less_than.*; found inf"),
        ("drift_tweaked", -0.5, "column drift_tweaked must satisfy greater_than_or_equal.*-0.5"),
        ("drift_rtn", math.inf, "column drift_rtn must satisfy less_than"),
        ("block", -1, "column block must satisfy greater_than_or_equal_to"),
        ("layer", "", "column layer must satisfy str_length"),
        ("tweak", "maybe", "column tweak must satisfy isin.*found maybe"),
        ("dead_columns", "many", "column dead_columns must satisfy coerce_dtype.*found many"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_is_written(tmp_path, column, value, message):
    bad = frame()
    bad[column] = bad[column].astype(object)
    bad.loc[2, column] = value
    with pytest.raises(TableError, match=message):
        BLOCKS.write(tmp_path / "blocks.parquet", bad)
    assert list(tmp_path.glob("*.parquet")) == []


def test_a_layer_may_occur_once_in_a_block_and_again_in_another():
    bad = frame()
    assert bad["layer"].duplicated().any()
    bad.loc[1, "layer"] = "attention.q"
    with pytest.raises(TableError, match=r"must satisfy multiple_fields_uniqueness.*\("):
        BLOCKS.validate(bad)


def test_a_missing_and_an_unknown_column_are_refused():
    with pytest.raises(TableError, match="found weight_error"):
        BLOCKS.validate(frame().drop(columns="weight_error"))
    with pytest.raises(TableError, match="must satisfy column_in_schema; found extra"):
        BLOCKS.validate(frame().assign(extra=1))


def test_a_layer_without_statistics_has_no_output_error_and_is_read_back_so(tmp_path):
    one = block_report(0, None, 0.1)
    layer = one.layers[0].model_copy(update={"output_error": None})
    one = one.model_copy(update={"layers": [layer, one.layers[1]]})
    BLOCKS.write(tmp_path / "blocks.parquet", block_frame([one], [one]))
    errors = BLOCKS.read(tmp_path / "blocks.parquet")["output_error"]
    assert math.isnan(errors[0])
    assert errors[1] == 0.125


def test_a_torn_table_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "blocks.parquet"
    BLOCKS.write(path, frame())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TableError, match="must be a parquet file"):
        BLOCKS.read(path)
    path.unlink()
    with pytest.raises(TableError, match="must be a parquet file"):
        BLOCKS.read(path)


def test_a_table_that_another_program_changed_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "blocks.parquet"
    frame().assign(bits=6).to_parquet(path, index=False)
    with pytest.raises(TableError, match="column bits"):
        BLOCKS.read(path)


def test_blocks_and_baseline_must_be_of_the_same_length():
    with pytest.raises(ValueError, match="shorter"):
        block_frame([block_report(0, None, 0.1)], [])
