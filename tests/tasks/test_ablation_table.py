import math

import pandas as pd
import pytest

from tasks.tables.ablation import (
    ABLATION,
    AblationTable,
)
from tasks.tables.frame import TableError

pytestmark = pytest.mark.usefixtures("root")


def frame() -> pd.DataFrame:
    row = {
        "study": "base", "value": "base", "seed": 0, "is_base": True, "recipe_sha256": "a" * 64,
        "export_sha256": "b" * 64, "perplexity_float": 10.0, "perplexity": 11.0,
        "perplexity_ratio": 1.1, "kl": 0.05, "top1_agreement": 0.9, "bits_per_weight": 2.28,
        "seconds": 12.5, "blocks": 5, "tweaks_kept": 4, "final_tune": "off",
        "problems": "block 4: mlp.up_proj left in float",
    }  # fmt: skip
    other = row | {"study": "loss", "value": "kl", "is_base": False, "seed": 1}
    return pd.DataFrame([row, other, row | {"study": "bits", "value": "1"}])


def test_a_table_is_read_back_as_it_was_written_and_equal_tables_are_equal_bytes(tmp_path):
    assert list(frame().columns) == list(AblationTable.to_schema().columns)
    ABLATION.write(tmp_path / "a.parquet", frame())
    ABLATION.write(tmp_path / "b.parquet", frame())
    pd.testing.assert_frame_equal(ABLATION.read(tmp_path / "a.parquet"), frame())
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
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
)
def test_a_wrong_value_is_named_and_nothing_is_written(tmp_path, column, value, message):
    bad = frame()
    bad[column] = bad[column].astype(object)
    bad.loc[1, column] = value
    with pytest.raises(TableError, match=message):
        ABLATION.write(tmp_path / "cells.parquet", bad)
    assert list(tmp_path.glob("*.parquet")) == []


def test_a_cell_may_occur_once_in_a_study():
    twice = pd.concat([frame(), frame().iloc[[1]]], ignore_index=True)
    with pytest.raises(TableError, match="must satisfy multiple_fields_uniqueness"):
        ABLATION.validate(twice)


def test_a_torn_file_is_an_error(tmp_path):
    ABLATION.write(tmp_path / "cells.parquet", frame())
    data = (tmp_path / "cells.parquet").read_bytes()
    (tmp_path / "cells.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(TableError, match=r"must be a parquet file; .*: make the table again"):
        ABLATION.read(tmp_path / "cells.parquet")
