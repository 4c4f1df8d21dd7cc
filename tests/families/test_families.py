"""One family in the suite, of those that `make families` takes the whole way."""

import json

from tests.benchmarks.results import split_page
from tests.families.__main__ import PAGE
from tests.families.models import GROUPS
from tests.families.page import MARK, matrix
from tests.families.running import CASES, attempt

OPENED = {"difference": 0.0012, "statistic": "max", "versions": {"torch": "2"}}


def test_a_family_goes_the_whole_way_and_its_reader_says_how_near_it_is():
    row = attempt(GROUPS["Conv1D"]["GPT-2"], CASES["zeros"])
    assert (row["difference"], row["agreement"], row["quantized"]) == (0, 1, 8)
    assert row["given_windows"] is None
    assert row["linears"].endswith("8 quantized, 1 in float (tied to the embedding)")
    refused = attempt(GROUPS["Conv1D"]["GPT-2"], CASES["bitnet"])["refused"]
    assert refused.startswith("ternary training needs linears of type nn.Linear")
    assert json.loads(json.dumps(row)) == row


def test_what_goes_wrong_is_a_row_as_well():
    def broken(folder):
        raise LookupError("no such model")

    assert attempt(broken, CASES["gptq"])["failed"] == "LookupError: no such model"


def test_families_that_are_refused_in_the_same_words_share_a_note():
    sentence = "the model must be one of llama, and it is {}. Use compressed-tensors."
    rows = {
        "Llama": {column: OPENED for column in CASES},
        "OPT": {"zeros": OPENED, "gguf": {"refused": sentence.format("opt")}},
        "Phi": {"gguf": {"refused": sentence.format("phi")}, "bitnet": {"failed": "it fell"}},
        "GPT": {"zeros": OPENED | {"given_windows": "it writes nothing"}},
    }
    told = matrix(rows)
    assert f"| Llama |{5 * ' 0.0012 |'}\n" in told
    assert "| Phi |  |  |  | [1] | failed [2] |\n| OPT | 0.0012 |  |  | [1] |  |\n" in told
    assert "| GPT | 0.0012 [3] |" in told
    assert "\n1. gguf, Phi, OPT: the model must be one of llama, and it is phi. Use" in told
    assert "\n3. on given windows, GPT: it writes nothing\n" in told
    assert "Of 10 exports 7 were opened, 2 refused and 1 failed; the largest difference is" in told


def test_the_page_holds_a_matrix_of_all_families():
    text = split_page(PAGE.read_text(), MARK)[1]
    names = [name for families in GROUPS.values() for name in families]
    assert [name for name in names if f"\n| {name} |" not in text] == []
