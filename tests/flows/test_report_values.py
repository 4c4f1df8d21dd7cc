"""The pages of runs as text: their numbers are those of the metrics and of the blocks."""

import dataclasses
from pathlib import Path

import pytest

from flows.reports.publish import write
from tests.flows.page_reader import PageReader
from tests.flows.quantize_values import METRICS, block, channel_drift, reports
from tests.flows.report_values import LOSSES, finetune_reports, ternary_reports

HOSTILE = "models/<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMTWEAK_HOME", str(tmp_path / "state"))


def page_of(files: list[Path]) -> str:
    (page,) = [path for path in files if path.name == "report.html"]
    return page.read_text(encoding="utf-8")


@pytest.fixture
def quantization(tmp_path) -> PageReader:
    return PageReader(page_of(write(reports(tmp_path / "export-w3").report())))


def test_every_metric_stands_on_the_page_with_all_its_digits(quantization):
    (number,) = [
        index for index, table in enumerate(quantization.tables) if "standard error" in table[0]
    ]
    names = [row[0] for row in quantization.tables[number][1:]]
    found = dict(zip(names, quantization.numbers[number][1:], strict=True))
    values = {name: value for name, value in METRICS.items() if not name.endswith("stderr")}
    assert {name: row[1] for name, row in found.items()} == values
    assert found["kl/mean"][2] == METRICS["kl/stderr"]
    assert found["perplexity/float"][2] == METRICS["perplexity/float_stderr"]
    assert found["size_bytes"][2] is None


def test_the_blocks_and_linears_are_those_of_the_run(quantization):
    first, second = quantization.table("round to nearest", "tweaked")
    tuned = [f"{left:.4f}" for left in channel_drift(2, True)["final tune"].relative_norm()]
    assert list(first.values()) == ["0", "0.5000", "0.2000", "0.1800", "kept", tuned[0]]
    assert list(second.values()) == ["1", "0.5000", "0.3000", "0.2700", "rolled back", tuned[1]]
    linears = quantization.table("weight error", "output error")
    assert [row["layer"] for row in linears] == ["mlp.up_proj", "mlp.down_proj"] * 2
    assert list(linears[3].values()) == [
        "1", "mlp.down_proj", "3", "0.2500", "0.1250", "0.01", "0.02", "0",
    ]  # fmt: skip


def test_the_page_tells_result_recipe_origin_and_versions(quantization):
    result = quantization.table("float", "quantized", "difference")
    assert result[0]["quantized"] == "5.997 ± 0.260"
    assert "float 1.1 MB, 5.33 times; 3.312 bits per weight" in quantization.words
    assert "On it: quantized, float." in quantization.words
    assert "name: Tiny.llama_w3" in quantization.code
    tags = {row["tag"]: row["value"] for row in quantization.table("tag")}
    assert tags["export_sha256"] == "e" * 64
    assert {row["package"] for row in quantization.table("package")} >= {"Python", "torch"}
    told = " ".join(quantization.words.split())
    assert "No problems. Notes, which ask for nothing: block 1: norm tweak rolled back" in told
    assert "3 windows are copies of another" in quantization.words


@pytest.mark.parametrize(
    ("gate", "texts"),
    [
        ({}, ["The recipe sets no threshold for the gate."]),
        ({"max_kl": 0.5}, ["The gate passed", "max_kl"]),
        (
            {"max_perplexity_ratio": 1.25, "max_kl": 0.5},
            [
                "The gate failed:",
                "perplexity/ratio must be at most 1.25 (gate.max_perplexity_ratio); found 1.3445, "
                "which with confidence 0.95 may be 1.3901 by its 32 windows",
            ],
        ),
    ],
)
def test_the_gate_is_told_as_it_is(tmp_path, gate, texts):
    words = PageReader(page_of(write(reports(tmp_path / "gated", gate=gate).report()))).words
    for text in texts:
        assert text in words


def test_the_name_of_a_model_cannot_bring_a_script(tmp_path):
    page = page_of(write(reports(tmp_path / "hostile", model={"source": HOSTILE}).report()))
    reader = PageReader(page)
    assert sum(tag == "script" for tag, _ in reader.elements) == 1
    assert f"{HOSTILE} in 3 bits by GPTQ" in reader.words
    assert HOSTILE in reader.code


def test_errors_that_were_not_measured_are_left_blank(tmp_path):
    blank = reports(tmp_path / "blank", [block(0, output_error=None)])
    reader = PageReader(page_of(write(blank.report())))
    (up, _) = reader.table("weight error", "output error")
    assert up["output error"] == ""


def test_the_page_of_a_ternary_training_has_its_surgery_and_its_curves(tmp_path):
    written = write(ternary_reports(tmp_path).report())
    reader = PageReader(page_of(written))
    assert reader.headings[:2] == ["tiny-ternary", "Result"]
    surgery = reader.table("loss", "change")
    assert [row["change"] for row in surgery] == [
        "+0.0000", "+4.7500", "+0.0000", "+0.0000", "+6.5000",
    ]  # fmt: skip
    steps = reader.table("step", "loss of held-out windows, all blocks ternary")
    assert [list(row.values()) for row in steps] == [["6", "2.2500"], ["12", "1.8750"]]
    assert (
        "12 steps of 2 windows, 6,144 tokens, from where GPTQ puts the weights; objective kd"
        in reader.words
    )
    assert "learning rate, and lambda of every block." in reader.words


def test_the_page_of_a_fine_tuning_has_its_blocks_and_three_models(tmp_path):
    reader = PageReader(page_of(write(finetune_reports(tmp_path).report())))
    first, second = reader.table("block", "before", "after")
    assert list(first.values()) == ["0", "0.5000", "0.2500", "kept"]
    assert list(second.values()) == ["1", "0.3750", "0.5000", "rolled back"]
    assert reader.table("before", "after", "difference to float")[0]["before"] == "8.000 ± 0.260"
    assert "On it: before, after, float." in reader.words
    assert "Of the distance to the float perplexity, 43 % are left." in reader.words
    told = " ".join(reader.words.split())
    assert "No problems. Notes, which ask for nothing: block 1: training rolled back" in told


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            finetune_reports,
            "end to end: training rolled back (held-out divergence 0.5 -> 0.25)",
        ),
        (
            ternary_reports,
            "training rolled back (objective on held-out windows 3.5 -> 0.5): the export is the "
            "ternary model before any training; lower ternary.lr, or train on more text",
        ),
    ],
)
def test_a_training_whose_start_is_kept_says_so(tmp_path, values, problem):
    kept = values(tmp_path)
    assert not any(
        "training rolled back (" in one and "block" not in one for one in kept.problems()
    )
    words = PageReader(page_of(write(kept.report()))).words
    assert "Exported are the weights after step 12, which held-out windows like best." in words
    assert " in float32" in words
    start = dataclasses.replace(kept, best=0)
    assert problem in start.problems()
    assert problem in start.lineage()["problems"]
    words = PageReader(page_of(write(start.report()))).words
    assert "Rolled back: held-out windows like the weights of the start best." in words


def test_a_fine_tuning_without_block_steps_has_no_picture_of_them(tmp_path):
    reader = PageReader(page_of(write(finetune_reports(tmp_path, 0).report())))
    assert reader.table("block", "before", "after") == []
    assert sum(tag == "svg" for tag, _ in reader.elements) == 2  # size and curves


def test_equal_trainings_write_equal_bytes(tmp_path):
    first = {path: path.read_bytes() for path in write(ternary_reports(tmp_path).report())}
    again = write(ternary_reports(tmp_path).report())
    assert {path: path.read_bytes() for path in again} == first
    other = dataclasses.replace(ternary_reports(tmp_path), losses=[*LOSSES[:-1], 9.0])
    assert page_of(write(other.report())) not in {
        data.decode() for path, data in first.items() if path.name == "report.html"
    }
