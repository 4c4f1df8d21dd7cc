"""A page as text: everything from outside is escaped, and nothing on it needs a network."""

import re
from pathlib import Path

import pytest

from flows.reports.comparison import comparison_report
from flows.reports.document import (
    Cell,
    Code,
    Document,
    Section,
    Table,
    Tile,
    environment,
    facts_table,
    number,
    written,
)
from flows.reports.evaluation import evaluation_report
from flows.reports.html import to_html
from tests.flows.page_reader import PageReader

HOSTILE = "<script>alert(1)</script>&\"'><img src=x onerror=alert(2)>"


def hostile_page() -> str:
    table = Table((HOSTILE, "plain"), [(Cell(HOSTILE), HOSTILE)], HOSTILE)
    parts = [table, HOSTILE, [HOSTILE], Code(HOSTILE, HOSTILE)]
    parts.append(facts_table({HOSTILE: HOSTILE}))
    return to_html(
        Document(
            HOSTILE, HOSTILE, HOSTILE, [Tile(HOSTILE, HOSTILE, HOSTILE)], [Section(HOSTILE, parts)]
        )
    )


def comparison(names=("float", "w4"), sizes=(1000.0, 400.0), losses=(2.0, 3.0)) -> dict:
    return {
        "models": [
            {
                "name": name,
                "address": f"models:/{name}/1",
                "size_bytes": size,
                "bits_per_weight": None if number == 0 else 4.25,
                "metrics": {
                    "perplexity": loss,
                    "perplexity_stderr": 0.125,
                    "tokens": 4096.0,
                    "piqa/acc": 0.75,
                },
            }
            for number, (name, size, loss) in enumerate(zip(names, sizes, losses, strict=True))
        ],
        "pairs": [
            {
                "first": names[0],
                "second": names[1],
                "metrics": {
                    "nll_difference/mean": 0.25,
                    "nll_difference/stderr": 0.0625,
                    "kl/mean": 0.5,
                    "piqa/acc/drop": -0.125,
                    "piqa/acc/drop_stderr": 0.03125,
                    "piqa/acc/mcnemar_p": 0.012345,
                },
            }
        ],
        "settings": {"windows": 16, "inputs": {"path": "text.txt"}},
        "environment": {"torch": "2.13.0", "lm-eval": "0.4.13"},
    }


def evaluation(**more) -> dict:
    """Return what the flow returns of a model measured beside another."""
    result = {
        "model": "models:/w4/1",
        "against": "reference:llama",
        "metrics": {
            "tokens": 4096.0,
            "perplexity/float": 10.0,
            "perplexity/float_stderr": 0.25,
            "perplexity/quantized": 11.0,
            "perplexity/quantized_stderr": 0.25,
            "perplexity/ratio": 1.1,
            "kl/mean": 0.03125,
            "kl/stderr": 0.001,
            "top1_agreement": 0.875,
            "piqa/acc/drop": -0.125,
            "size_bytes": 400_000.0,
            "bits_per_weight": 4.25,
        },
        "settings": {"windows": 16, "tasks": {"piqa": {"version": "1.0", "items": 8}}},
    }
    return result | more


def comparison_page(result: dict) -> str:
    return to_html(comparison_report(Path(), result).document)


def evaluation_page(result: dict, beside_bytes: float | None) -> str:
    return to_html(evaluation_report(Path(), result, beside_bytes).document)


def scripts(page: str) -> int:
    return sum(tag == "script" for tag, _ in PageReader(page).elements)


def test_what_comes_from_outside_is_text_wherever_it_stands():
    page = hostile_page()
    reader = PageReader(page)
    assert scripts(page) == 1, "a script beside the page's own"
    assert not [tag for tag, _ in reader.elements if tag == "img"]
    handlers = [
        name for _, attributes in reader.elements for name in attributes if "onerror" in name
    ]
    assert handlers == []
    # Kind, title, lead, three of the tile, heading of the section, caption, column, two cells,
    # paragraph, point, code, two facts, and the page's title; twice as many would be no harm.
    assert reader.words.count(HOSTILE) >= 15
    assert reader.code == HOSTILE


def test_what_a_comparison_is_given_is_text_as_well():
    page = comparison_page(comparison(names=(HOSTILE, "w4")))
    assert scripts(page) == 1
    assert HOSTILE in PageReader(page).words
    assert not [tag for tag, _ in PageReader(page).elements if tag == "img"]


def test_a_page_leads_to_nothing_but_itself():
    page = comparison_page(comparison())
    reader = PageReader(page)
    own = {attributes["id"] for _, attributes in reader.elements if attributes.get("id")}
    assert reader.addresses(), "a page with contents and pictures has addresses"
    assert {
        address for address in reader.addresses() if address.removeprefix("#") not in own
    } == set()
    for reference in re.findall(r"url\((.*?)\)", page):
        assert reference.strip("\"'").removeprefix("#") in own
    # The names of SVG's vocabularies look like addresses, and are not.
    without = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert "://" not in without
    assert "@import" not in page
    ids = [attributes["id"] for _, attributes in reader.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_the_comparison_has_every_number_it_was_given():
    reader = PageReader(comparison_page(comparison()))
    first, second = reader.table("model", "perplexity")
    assert first == {
        "model": "float", "address": "models:/float/1", "MB": "0.00", "bits per weight": "",
        "perplexity": "2.0000 ± 0.1250", "piqa/acc": "0.7500",
    }  # fmt: skip
    assert second["bits per weight"] == "4.250"
    assert reader.table("first", "second") == [
        {
            "first": "float", "second": "w4", "nll_difference": "+0.2500 ± 0.0625", "kl": "0.5000",
            "piqa/acc/drop": "-0.1250 ± 0.0312", "piqa/acc/mcnemar_p": "0.0123",
        }
    ]  # fmt: skip
    assert [2.0, 3.0] == [row[4] for row in reader.numbers[0][1:]]
    assert '"windows": 16' in reader.code
    assert {"package": "lm-eval", "value": "0.4.13"} in reader.table("package")
    assert "On it: w4, float." in reader.words


def test_the_page_of_an_evaluation_has_every_number_and_what_it_is_beside():
    reader = PageReader(evaluation_page(evaluation(), 1e6))
    rows = {row["measure"]: row for row in reader.table("measure")}
    metrics = evaluation()["metrics"]
    assert set(rows) == {name for name in metrics if not name.endswith("stderr")}
    assert rows["kl/mean"] == {"measure": "kl/mean", "value": "0.03125", "standard error": "0.001"}
    lead = "Measured on 4,096 tokens in 16 windows, 8 items of piqa, beside reference:llama."
    assert lead in reader.words
    assert "model beside it 10.000 ± 0.250, +10.0 %" in reader.words
    assert "On it: models:/w4/1, reference:llama." in reader.words


def test_the_page_of_a_model_by_itself_compares_it_with_nothing():
    metrics = {"tokens": 64.0, "perplexity/float": 10.0, "size_bytes": 1000.0}
    page = evaluation_page(evaluation(against=None, metrics=metrics), None)
    reader = PageReader(page)
    assert "Quality against size" not in reader.headings
    assert "windows, 8 items of piqa." in reader.words
    assert "beside" not in reader.words


def test_a_small_error_is_seen_and_a_folder_is_called_by_its_last_part():
    names = ("/home/of/someone/w8", "/home/of/someone/w4")
    result = comparison(names)
    result["pairs"][0]["metrics"] |= {"kl/mean": 0.000812345, "kl/stderr": 0.0000345}
    reader = PageReader(comparison_page(result))
    (pair,) = reader.table("first", "second")
    assert (pair["first"], pair["second"], pair["kl"]) == ("w8", "w4", "0.000812 ± 0.000034")
    assert [row["model"] for row in reader.table("model", "perplexity")] == ["w8", "w4"]
    assert "w4, w8." in reader.words
    two_alike = PageReader(comparison_page(comparison(("/a/w4", "/b/w4"))))
    assert [row["model"] for row in two_alike.table("model", "perplexity")] == ["/a/w4", "/b/w4"]


def test_a_model_that_another_beats_is_not_on_the_front():
    three = comparison(("float", "w4", "worse"), (1000.0, 400.0, 500.0), (2.0, 3.0, 4.0))
    words = PageReader(comparison_page(three)).words
    assert "On it: w4, float." in words


def test_equal_comparisons_are_equal_pages_and_others_are_not():
    page = comparison_page(comparison())
    assert page == comparison_page(comparison())
    assert page != comparison_page(comparison(losses=(2.0, 3.5)))


def test_a_number_is_sorted_by_its_value_and_not_by_its_text():
    assert number(1234.5678, ",.1f", 0.25) == Cell("1,234.6 ± 0.2", 1234.5678)
    assert number(0.5, "+.2f", 0.125) == Cell("+0.50 ± 0.12", 0.5)
    assert number(-0.7096, "+.1%", 0.0096) == Cell("-71.0 % ± 1.0 %", -0.7096)
    assert written(0.7096, ".1%") == "71.0 %"
    assert number(None) == number(float("nan")) == Cell("")


def test_a_row_that_does_not_fit_the_head_is_refused():
    with pytest.raises(AssertionError, match="two of three"):
        Table(("a", "b", "c"), [("1", "2")], "two of three")


def test_the_environment_names_versions_and_nothing_of_the_machine():
    import torch

    versions = environment()
    assert torch.__version__.startswith(versions["torch"])
    assert set(versions) == {
        "Python", "normtweak", "torch", "transformers", "compressed-tensors", "lm-eval", "prefect",
    }  # fmt: skip
