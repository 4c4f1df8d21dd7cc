"""The tables with a schema: what they hold, what they refuse, and what is read back of them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from normtweak_core.calibration.sets import CalibrationSet
from normtweak_core.evaluate.channel_drift import ChannelDrift
from normtweak_core.quantization.report import BlockReport, LayerReport
from normtweak_core.reference.architectures import train_tokenizer
from normtweak_core.tweak.report import TweakReport
from tasks.tables.ablation import ABLATION
from tasks.tables.blocks import BITS, BLOCKS, block_frame, tweak_outcome
from tasks.tables.calibration import calibration_frame, calibration_table
from tasks.tables.drift import DRIFT, STAGES, drift_frame, stages_of
from tasks.tables.evaluation import EVALUATION, evaluation_frame
from tasks.tables.frame import Table, TableError

pytestmark = pytest.mark.usefixtures("root")

TOKENIZER = train_tokenizer(["a small house near the river " * 3], "llama")
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


def cells() -> pd.DataFrame:
    row = {
        "study": "base", "value": "base", "seed": 0, "is_base": True, "recipe_sha256": "a" * 64,
        "export_sha256": "b" * 64, "perplexity_float": 10.0, "perplexity": 11.0,
        "perplexity_ratio": 1.1, "kl": 0.05, "top1_agreement": 0.9, "bits_per_weight": 2.28,
        "seconds": 12.5, "blocks": 5, "tweaks_kept": 4, "final_tune": "off",
        "problems": "block 4: mlp.up_proj left in float",
    }  # fmt: skip
    other = row | {"study": "loss", "value": "kl", "is_base": False, "seed": 1}
    return pd.DataFrame([row, other, row | {"study": "bits", "value": "1"}])


def layer_report(name: str, bits: int) -> LayerReport:
    return LayerReport(
        layer=name, bits=bits, percdamp=0.01, damping_raised=False, ridge=0.02, ridge_raised=False,
        dead_columns=0, weight_error=0.25, output_error=0.125,
    )  # fmt: skip


def block_report(block: int, accepted: bool | None, drift: float, bits: int = 2) -> BlockReport:
    tweak = None
    if accepted is not None:
        tweak = TweakReport(
            lr=1e-3, held_out_before=0.2, held_out_after=0.1, distance_before=0.5,
            distance_after=0.4, accepted=accepted, share=float(accepted),
        )  # fmt: skip
    return BlockReport(
        block=block,
        layers=[layer_report("attention.q", bits), layer_report("mlp.up", bits)],
        left_float=[],
        tweak=tweak,
        drift_quantized=drift,
        drift_tweaked=drift * 0.75,
        mean_shift_quantized=0.01,
        mean_shift_tweaked=0.005,
    )


def blocks(bits: int = 2) -> pd.DataFrame:
    of_run = [block_report(0, True, 0.2, bits), block_report(1, False, 0.4, bits)]
    return block_frame(of_run, [block_report(0, None, 0.5), block_report(1, None, 0.7)])


def ids() -> torch.Tensor:
    return torch.randint(len(TOKENIZER), (5, 7), generator=torch.Generator().manual_seed(0))


def windows() -> pd.DataFrame:
    return calibration_frame(CalibrationSet(ids(), "text"), TOKENIZER, [0.5, 1.0, 1.5, 2.0, 2.5])


def stages() -> dict[str, ChannelDrift]:
    draw, shape = np.random.default_rng(1).random, (3, 5)  # blocks, channels
    return {
        name: ChannelDrift(draw(shape), draw(shape), -draw(shape), draw(shape), 4 + draw(shape))
        for name in STAGES
    }


def drift() -> pd.DataFrame:
    return drift_frame(stages())


def measures() -> pd.DataFrame:
    return evaluation_frame(METRICS, 64, {"piqa": ("1.0", 10)}, 3, {"torch": "2"})


class Kind(NamedTuple):
    """A kind of table, a valid one, a column of values, and what to do about one that is not."""

    table: Table
    frame: Callable[[], pd.DataFrame]
    value: str
    remedy: str = "make the table again"


KINDS = {
    "cells": Kind(ABLATION, cells, "perplexity"),
    "blocks": Kind(BLOCKS, blocks, "weight_error"),
    "windows": Kind(calibration_table(400), windows, "nll"),
    "drift": Kind(DRIFT, drift, "variance"),
    "measures": Kind(EVALUATION, measures, "seed", "evaluate again"),
}


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    return KINDS[request.param]


def same(read: pd.DataFrame, written: pd.DataFrame) -> None:
    if "input_ids" in read:
        lists = read["input_ids"].map(lambda row: [int(one) for one in row])
        read = read.assign(input_ids=lists)
    pd.testing.assert_frame_equal(read, written)


def test_a_table_is_read_back_as_it_was_written_and_equal_tables_are_equal_bytes(tmp_path, kind):
    kept = kind.frame()
    kind.table.write(tmp_path / "a", kept)
    pd.testing.assert_frame_equal(kept, kind.frame())  # validation leaves its input alone
    kind.table.write(tmp_path / "b", kind.frame())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    same(kind.table.read(tmp_path / "a"), kind.frame())
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "state"}


WRONG: dict[str, list[tuple[str, Any, str]]] = {
    "cells": [
        ("study", "colour", "column study must satisfy isin.*found colour"),
        ("value", "", "column value must satisfy str_length"),
        ("seed", -1, "column seed must satisfy greater_than_or_equal_to.*found -1"),
        ("recipe_sha256", "abc", "column recipe_sha256 must satisfy str_matches.*found abc"),
        ("export_sha256", "abc", "column export_sha256 must satisfy str_matches.*found abc"),
        ("perplexity_float", 0.5, "column perplexity_float must satisfy greater_than"),
        ("perplexity", math.inf, "column perplexity must satisfy less_than.*found inf"),
        ("perplexity_ratio", 0.0, "column perplexity_ratio must satisfy greater_than"),
        ("kl", math.nan, "column kl must satisfy not_nullable; found nan"),
        ("kl", -0.1, "column kl must satisfy greater_than"),
        ("top1_agreement", 1.5, "column top1_agreement must satisfy less_than_or_equal_to"),
        ("bits_per_weight", 0.0, "column bits_per_weight must satisfy greater_than"),
        ("seconds", -1.0, "column seconds must satisfy greater_than_or_equal_to"),
        ("blocks", 0, "column blocks must satisfy greater_than_or_equal_to"),
        ("tweaks_kept", 6, "rows must satisfy as many tweaks kept as blocks at most"),
        ("problems", "", "column problems must satisfy str_length"),
        ("final_tune", "maybe", "column final_tune must satisfy isin.*found maybe"),
    ],
    "blocks": [
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
    "windows": [
        ("sample_id", 0, "column sample_id must satisfy .*unique"),
        ("n_tokens", 8, "n_tokens equal to the number of input_ids; found"),
        ("input_ids", [0, 1, 2, 3, 4, 5, 400], "column input_ids must satisfy ids from 0 to 399"),
        ("input_ids", [0, 1, 2, 3, 4, 5, -1], "column input_ids must satisfy ids from 0 to 399"),
        ("nll", math.nan, "column nll must satisfy not_nullable"),
        ("nll", math.inf, "column nll must satisfy less_than"),
        ("nll", "much", "column nll must satisfy coerce_dtype"),
        ("source", "guess", "column source must satisfy isin"),
        ("text", None, "column text must satisfy not_nullable"),
    ],
    "drift": [
        ("stage", "float", r"column stage must satisfy isin\(.*found float"),
        ("block", -1, "column block must satisfy greater_than_or_equal_to"),
        ("channel", "first", "column channel must satisfy coerce_dtype.*found first"),
        ("mean", math.nan, "column mean must satisfy not_nullable; found nan"),
        ("mean_float", -math.inf, "column mean_float must satisfy greater_than.*found -inf"),
        ("variance", -0.5, "column variance must satisfy greater_than_or_equal.*found -0.5"),
        ("variance_float", math.inf, "column variance_float must satisfy less_than.*found inf"),
        ("square_error", 1e-3, r"square_error not below \(mean - mean_float\)\^2; found"),
    ],
    "measures": [
        ("stderr", -1.0, r"column stderr must satisfy greater_than_or_equal_to\(0\); found -1.0"),
        ("count", 0, r"column count must satisfy greater_than_or_equal_to\(1\); found 0"),
        (
            "unit",
            "tokens",
            r"column unit must satisfy isin\(\['windows', 'items'\]\); found tokens",
        ),
        ("value", math.nan, "column value must satisfy not_nullable; found nan"),
        ("measure", "size_bytes", "column measure must satisfy field_uniqueness; found size_bytes"),
    ],
}


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [(name, *case) for name, cases in WRONG.items() for case in cases],
)
def test_a_wrong_value_is_named_and_nothing_is_written(tmp_path, name, column, value, message):
    kind = KINDS[name]
    bad = kind.frame()
    bad[column] = bad[column].astype(object)
    bad.at[1, column] = value
    with pytest.raises(TableError, match=f"{message}.*: {kind.remedy}"):
        kind.table.write(tmp_path / "table", bad)
    assert not list(tmp_path.glob("*table*"))


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("blocks", "bits", 6, "column bits"),
        ("windows", "n_tokens", 8, "n_tokens equal to the number of input_ids"),
        ("measures", "count", 0, "column count must satisfy"),
    ],
)
def test_a_table_that_another_program_changed_is_refused_when_it_is_read(
    tmp_path, name, column, value, message
):
    kind = KINDS[name]
    kind.frame().assign(**{column: value}).to_parquet(tmp_path / "table", index=False)
    with pytest.raises(TableError, match=message):
        kind.table.read(tmp_path / "table")


def test_a_torn_or_missing_file_is_refused(tmp_path, kind):
    path = tmp_path / "table"
    message = rf"must be a parquet file; .*: {kind.remedy}"
    with pytest.raises(TableError, match=message):
        kind.table.read(path)
    kind.table.write(path, kind.frame())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TableError, match=message):
        kind.table.read(path)


def test_a_missing_and_an_unknown_column_are_refused(kind):
    frame = kind.frame()
    with pytest.raises(TableError, match="must satisfy column_in_schema; found extra"):
        kind.table.validate(frame.assign(extra=1))
    with pytest.raises(TableError, match=f"must satisfy column_in_dataframe; found {kind.value}"):
        kind.table.validate(frame.drop(columns=kind.value))


@pytest.mark.parametrize(
    ("name", "column"), [("cells", "seed"), ("blocks", "layer"), ("drift", "channel")]
)
def test_what_names_a_row_may_occur_once(name, column):
    kind = KINDS[name]
    twice = kind.frame()
    assert twice[column].duplicated().any()  # beside another study, block or stage
    twice.loc[1] = twice.loc[0]
    with pytest.raises(TableError, match="must satisfy multiple_fields_uniqueness"):
        kind.table.validate(twice)


def test_a_row_of_blocks_is_a_layer_and_carries_what_its_block_says():
    row = blocks().iloc[3]
    assert (row["block"], row["layer"], row["bits"]) == (1, "mlp.up", 2)
    assert (row["weight_error"], row["output_error"]) == (0.25, 0.125)
    assert (row["ridge"], row["ridge_raised"]) == (0.02, False)
    assert row["drift_rtn"] == 0.7
    assert row["drift_quantized"] == 0.4
    assert row["drift_tweaked"] == pytest.approx(0.3)
    assert blocks()["tweak"].tolist() == ["kept", "kept", "rolled back", "rolled back"]
    assert tweak_outcome(block_report(0, None, 0.1)) == "off"


def test_every_width_is_a_width_of_a_block():
    for bits in BITS:
        assert set(BLOCKS.validate(blocks(bits))["bits"]) == {bits}


def test_a_layer_without_statistics_has_no_output_error_and_is_read_back_so(tmp_path):
    one = block_report(0, None, 0.1)
    layer = one.layers[0].model_copy(update={"output_error": None})
    one = one.model_copy(update={"layers": [layer, one.layers[1]]})
    BLOCKS.write(tmp_path / "blocks.parquet", block_frame([one], [one]))
    errors = BLOCKS.read(tmp_path / "blocks.parquet")["output_error"]
    assert math.isnan(errors[0])
    assert errors[1] == 0.125


def test_blocks_and_baseline_must_be_of_the_same_length():
    with pytest.raises(ValueError, match="shorter"):
        block_frame([block_report(0, None, 0.1)], [])


def test_a_table_of_windows_holds_every_window_and_its_text():
    frame = windows()
    assert frame["input_ids"].tolist() == ids().tolist()
    assert frame["text"].tolist() == [TOKENIZER.decode(row) for row in ids().tolist()]
    assert frame["sample_id"].tolist() == [0, 1, 2, 3, 4]
    assert set(frame["n_tokens"]) == {7}


def test_windows_of_another_vocabulary_are_refused_when_they_are_read(tmp_path):
    calibration_table(400).write(tmp_path / "a", windows())
    with pytest.raises(TableError, match="ids from 0 to 9"):
        calibration_table(10).read(tmp_path / "a")


def test_a_row_of_drift_is_a_channel_behind_a_block_at_a_stage():
    tweaked = stages()["norm tweak"]
    row = drift().set_index(["stage", "block", "channel"]).loc[("norm tweak", 2, 4)]
    assert row["mean_float"] == tweaked.mean_float[2, 4]
    assert row["variance_float"] == tweaked.variance_float[2, 4]
    assert (row["mean"], row["variance"]) == (tweaked.mean[2, 4], tweaked.variance[2, 4])
    assert row["square_error"] == tweaked.square_error[2, 4]
    assert len(drift()) == 5 * 3 * 5


def test_a_table_of_drift_gives_its_stages_again_in_whichever_order_its_rows_stand():
    shuffled = stages_of(drift().sample(frac=1, random_state=2))
    for name, one in stages().items():
        for field, values in vars(one).items():
            assert (getattr(shuffled[name], field) == values).all()
    assert list(stages_of(drift())) == list(STAGES)


def test_drift_with_a_channel_missing_is_refused():
    for missing in (drift().drop(index=3), drift().iloc[:0]):
        with pytest.raises(TableError, match="as many rows as stages x blocks x channels"):
            DRIFT.validate(missing)


def test_an_error_of_drift_as_small_as_rounding_makes_it_is_accepted():
    table = drift()
    table["square_error"] = (table["mean"] - table["mean_float"]) ** 2 * (1 - 1e-12)
    DRIFT.validate(table)
