"""The table of an evaluation: a row for each number, with its error and what it rests on."""

import json
import math

import pytest

from normtweak_core.evaluate.metric import stderr_name
from tests.tasks.test_tables import METRICS, measures

pytestmark = pytest.mark.usefixtures("root")


def test_every_number_stands_once_with_its_error_and_what_it_rests_on():
    rows = measures().set_index("measure")
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
