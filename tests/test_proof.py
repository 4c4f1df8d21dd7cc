"""The proof that results stay: what two records say of each other, and what is left out of one."""

import copy
from pathlib import Path

import pandas as pd
import pytest

from tests.proof.cases import CASES, REPOSITORY
from tests.proof.comparison import differences
from tests.proof.facts import digest, flat, table_facts

RECORD = {
    "machine": {"processor": "one", "torch": "2"},
    "cases": {
        "tiny": {
            "exit code": 0,
            "result": {"export_sha256": "ab" * 32, "metrics.kl/mean": 0.25, "blocks": 2},
            "version": {"tags": {"perplexity/ratio": "1.5", "notes": "block 1: rolled back"}},
            "tables": {"drift.parquet": {"mean": f"float64 sha256:{'0' * 16}"}},
        }
    },
}


def changed(*path: str, value: object = None, machine: str = "one") -> dict:
    """Return the record with another value, or without one."""
    record = copy.deepcopy(RECORD)
    record["machine"]["processor"] = machine
    *places, leaf = ("cases", "tiny", *path)
    place = record
    for name in places:
        place = place[name]
    del place[leaf]
    if value is not None:
        place[leaf] = value
    return record


def test_what_differs_is_gone_or_new_is_named():
    assert differences(RECORD, RECORD) == ([], [])
    other = changed("result", "metrics.kl/mean", value=0.2500000001)
    line = "/tiny/result/metrics.kl/mean: was 0.25, is 0.2500000001"
    assert differences(RECORD, other) == ([line], [])
    gone = changed("version", "tags", "notes")
    line = "/tiny/version/tags/notes"
    assert differences(RECORD, gone) == ([f"{line}: gone; was 'block 1: rolled back'"], [])
    assert differences(gone, RECORD) == ([], [f"{line}: 'block 1: rolled back'"])


@pytest.mark.parametrize(
    ("path", "near", "far"),
    [
        (("result", "metrics.kl/mean"), 0.3, 0.32),
        (("version", "tags", "perplexity/ratio"), "1.7", "2.1"),
        (("result", "export_sha256"), "cd" * 32, None),
        (("tables", "drift.parquet", "mean"), f"float64 sha256:{'1' * 16}", "int64 sha256"),
        (("version", "tags", "notes"), "none", ...),
        (("result", "blocks"), 2, 3),
        (("exit code",), 0, 1),
    ],
)
def test_another_machine_has_other_hashes_choices_and_last_digits(path, near, far):
    assert differences(RECORD, changed(*path, value=near, machine="two")) == ([], [])
    if far is not ...:
        found, _ = differences(RECORD, changed(*path, value=far, machine="two"))
        assert [line.partition(":")[0] for line in found] == ["/".join(["", "tiny", *path])]


def test_times_ids_and_places_are_left_out():
    result = {
        "seconds": 2.5,
        "flow_run_id": "x",
        "export_dir": "/tmp/work/state/exports/a",
        "metrics": {"kl/mean": 0.123456789012},
        "models": [{"name": "/tmp/work/state/exports/tiny-w2-0123456789ab", "seed": 1}],
        "cells": [{"kl": number / 7, "seconds": number} for number in range(9)],
    }
    assert flat(result, Path("/tmp/work")) == {
        "metrics.kl/mean": 0.123456789,
        "models.0.name": "WORK/state/exports/tiny-w2-KEY",
        "models.0.seed": 1,
        "cells.kl": digest([float(f"{number / 7:.10g}") for number in range(9)]),
    }


def test_a_table_is_told_by_its_columns(tmp_path):
    file = tmp_path / "t.parquet"
    pd.DataFrame({"block": [0, 1], "ids": [[1, 2], [3]], "seconds": [0.5, 0.25]}).to_parquet(file)
    assert table_facts(file, tmp_path) == {
        "rows": 2,
        "block": f"int64 {digest([0, 1])}",
        "ids": f"object {digest([[1, 2], [3]])}",
        "seconds": "float64",
    }


def test_every_recipe_that_ships_is_a_case_and_a_case_reads_only_those_before_it():
    recipes = {case.recipe for case in CASES.values() if isinstance(case.recipe, str)}
    assert recipes == {file.name for file in (REPOSITORY / "conf").glob("*.yaml")}
    names = list(CASES)
    for number, name in enumerate(names):
        assert CASES[name].reads <= set(names[:number]), name
