import base64
import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flows.reports.blocks.rows import block_rows
from flows.reports.publish import artifact_key, publish, write
from flows.reports.run import run_tiles
from normtweak_core.evaluate.scores import Comparison, FloatResult
from tasks.tables.blocks import BLOCKS
from tasks.tables.drift import DRIFT
from tasks.tables.frame import TableError
from tests.flows.quantize_values import block, reports


@pytest.fixture(scope="module", autouse=True)
def state(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTWEAK_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exports") / "export-w3"


@pytest.fixture(scope="module")
def written(export) -> dict[str, Path]:
    """The files of a run; drawing them takes its time, and no test changes them."""
    return {path.name: path for path in write(reports(export).report())}


def text(written: dict[str, Path], name: str) -> str:
    return written[name].read_text(encoding="utf-8")


def test_the_files_lie_in_a_folder_of_the_export(written, export):
    assert set(written) == {
        "blocks.parquet", "blocks.md", "calibration.md", "summary.md", "recipe.yaml",
        "lineage.json", "drift.png", "report.html",
        "drift.parquet", "drift-channels.png",
    }  # fmt: skip
    assert {path.parent for path in written.values()} == {reports(export).folder}
    folder = written["summary.md"].parent
    assert {path.name for path in folder.iterdir()} == set(written)
    assert folder.parent == export / "reports"


def test_another_recipe_that_leads_to_the_same_export_writes_elsewhere(written, export):
    before = {path: path.read_bytes() for path in written.values()}
    other = write(reports(export, name="other-name").report())
    assert {path: path.read_bytes() for path in before} == before
    assert other[0].parent != written["summary.md"].parent
    read = [yaml.safe_load(one["recipe.yaml"].read_text()) for one in (
        written, {path.name: path for path in other},
    )]  # fmt: skip
    assert [recipe["name"] for recipe in read] == ["Tiny.llama_w3", "other-name"]
    assert written["drift.png"].read_bytes().startswith(b"\x89PNG")


def test_equal_runs_write_equal_bytes(written, export):
    before = {name: path.read_bytes() for name, path in written.items()}
    again = write(reports(export).report())
    assert {path.name: path.read_bytes() for path in again} == before


def test_the_table_of_layers_is_the_one_that_was_reported(written):
    table = BLOCKS.read(written["blocks.parquet"])
    assert table["block"].tolist() == [0, 0, 1, 1]
    assert table["tweak"].tolist() == ["kept", "kept", "rolled back", "rolled back"]
    assert table["drift_rtn"].tolist() == [0.5] * 4
    assert table["drift_tweaked"].tolist() == pytest.approx([0.18, 0.18, 0.27, 0.27])


def test_the_blocks_stand_in_a_table_with_every_linear(written):
    page = text(written, "blocks.md")
    assert "| 0 | 0.5000 | 0.2000 | 0.1800 | kept | " in page
    assert "| 1 | 0.5000 | 0.3000 | 0.2700 | rolled back | " in page
    assert "| 1 | mlp.down_proj | 3 | 0.2500 | 0.1250 | 0.01 | 0.02 | 0 |" in page


def test_the_calibration_page_tells_the_verdict_and_its_reasons(written):
    page = text(written, "calibration.md")
    assert "64 windows of 256 tokens (16,384 tokens), source generated, seed 0." in page
    assert "Verdict: used, with a warning." in page
    assert "- 3 windows are copies of another" in page
    assert "| Distinct 4-grams in a window, in the set | 98.4 %, 94.8 % |" in page
    assert "| Letters by script | latin 98.0 %, greek 2.0 % |" in page
    assert "| Mean loss of the float model | 1.735 nats per token |" in page


def test_the_summary_compares_float_and_quantized_with_their_errors(written):
    page = text(written, "summary.md")
    assert "| perplexity | 4.460 ± 0.200 | 5.997 ± 0.260 | 1.345 ± 0.026 times |" in page
    assert "| loss (nats per token) | 1.495 ± 0.045 | 1.791 ± 0.043 | +0.296 ± 0.020 |" in page
    assert "| KL divergence (nats per token) |  | 0.3431 ± 0.0139 |  |" in page
    assert "| same first choice |  | 71.0 % ± 1.0 % |  |" in page
    assert "| size |  | 0.20 MB |  |" in page
    assert "| bits per weight |  | 3.312 |  |" in page
    assert "On 4,064 predicted tokens; ± is one standard error. Size counts" in page
    assert "in 3 bits by GPTQ (asymmetric, groups of 64). Export: export-w3." in page


def test_a_single_window_has_no_standard_errors_and_is_reported_all_the_same(tmp_path):
    float_result = FloatResult(tokens=127, window_nll=[1.5])
    one_window = Comparison(
        float_result=float_result,
        quantized_result=FloatResult(tokens=127, window_nll=[1.75]),
        window_kl=[0.25],
        window_kl_reverse=[0.125],
        window_agreement=[0.75],
    )
    sizes = {"size_bytes": 197916.0, "bits_per_weight": 3.3121}
    alone = reports(tmp_path / "one", metrics=one_window.metrics() | sizes)
    page = text({path.name: path for path in write(alone.report())}, "summary.md")
    assert "| perplexity | 4.482 | 5.755 | 1.284 times |" in page
    assert "| loss (nats per token) | 1.500 | 1.750 | +0.250 |" in page
    assert "| KL divergence (nats per token) |  | 0.2500 |  |" in page
    assert "| same first choice |  | 75.0 % |  |" in page
    assert "On 127 predicted tokens of a single window, too few for a standard error." in page
    assert "±" not in page


def test_the_summary_tells_what_became_of_every_stage(written):
    page = text(written, "summary.md")
    assert "| norm tweak | kept in 1 of 2 blocks; rolled back in 1 |" in page
    assert "| final tune | kept: held-out divergence 0.5 → 0.4 nats per token |" in page
    assert "| calibration | used, with a warning |" in page
    told = "No problems.\n\nNotes, which ask for nothing:\n\n- block 1: norm tweak rolled back"
    assert told in page
    assert "(drift.png)" in page


def test_the_summary_says_where_no_norm_has_a_weight_and_calls_it_no_problem(tmp_path):
    none = {"trained": False, "accepted": False}
    first = block(0)
    first = first.model_copy(update={"tweak": first.tweak.model_copy(update=none)})
    told = reports(tmp_path / "olmo", [first])
    told = replace(told, final_tune=told.final_tune.model_copy(update=none))
    page = text({path.name: path for path in write(told.report())}, "summary.md")
    for stage in ("norm tweak", "final tune"):
        assert f"| {stage} | nothing to train: no norm of this model has a weight |" in page
    assert told.problems() == []


def test_stages_that_were_off_and_a_run_without_problems_are_told_as_such(tmp_path):
    off = reports(
        tmp_path / "off",
        blocks=[block(0, accepted=None)],
        final_tune=False,
        norm_tweak={"enabled": False},
        quantization={"bits": 3, "method": "rtn", "group_size": None, "symmetric": True},
    )
    page = text({path.name: path for path in write(off.report())}, "summary.md")
    assert "| norm tweak | off |" in page
    assert "| final tune | off |" in page
    assert "No problems.\n" in page
    assert "Notes, which" not in page
    assert "by round to nearest (symmetric, one scale per row)" in page


def test_a_rollback_is_a_note_and_no_problem(tmp_path):
    # Nearly every run at 4 bits has one, and nobody has to do anything about it.
    undone = reports(tmp_path / "undone", [block(0, accepted=False), block(1)])
    tune = undone.final_tune.model_copy(update={"accepted": False})
    undone = dataclasses.replace(undone, final_tune=tune)
    assert undone.problems() == []
    assert [note.partition(" (")[0] for note in undone.notes()] == [
        "block 0: norm tweak rolled back",
        "final tune rolled back",
    ]
    tags = undone.lineage()
    assert tags["problems"] == "none"
    assert tags["notes"].startswith("block 0: norm tweak rolled back (held-out loss ")
    tiles = {tile.label: tile for tile in run_tiles(undone)}
    assert (tiles["Problems"].value, tiles["Problems"].tone) == ("none", "")
    assert tiles["Problems"].note == "and notes: 2"
    raised = reports(tmp_path / "raised", [block(0, damping_raised=True, percdamp=0.1)])
    tiles = {tile.label: tile for tile in run_tiles(raised)}
    assert (tiles["Problems"].value, tiles["Problems"].tone) == ("2", "bad")
    assert "block 0: damping of mlp.up_proj raised to 0.1" in raised.lineage()["problems"]
    assert raised.lineage()["notes"] == "none"


def test_raised_damping_is_visible_in_the_table_and_among_the_problems(tmp_path):
    raised = reports(tmp_path / "raised", [block(0, damping_raised=True, percdamp=0.1)])
    files = {path.name: path for path in write(raised.report())}
    assert "| 0.1 (raised) |" in text(files, "blocks.md")
    assert "- block 0: damping of mlp.up_proj raised to 0.1" in text(files, "summary.md")


def test_a_raised_ridge_is_visible_in_the_table_and_among_the_problems(tmp_path):
    raised = reports(tmp_path / "raised", [block(0, ridge_raised=True, ridge=0.1)])
    files = {path.name: path for path in write(raised.report())}
    assert "| 0.01 | 0.1 (raised) | 0 |" in text(files, "blocks.md")
    assert "- block 0: ridge of mlp.up_proj raised to 0.1" in text(files, "summary.md")
    assert BLOCKS.read(files["blocks.parquet"])["ridge_raised"].tolist() == [True, True]


def test_an_output_error_that_was_not_measured_is_left_blank(tmp_path):
    blank = reports(tmp_path / "blank", [block(0, output_error=None)])
    files = {path.name: path for path in write(blank.report())}
    assert "| 0 | mlp.up_proj | 3 | 0.2500 |  | 0.01 | 0.02 | 0 |" in text(files, "blocks.md")
    (row,) = block_rows(BLOCKS.read(files["blocks.parquet"]))
    assert row["output error"] == ""


def test_a_drift_that_is_not_finite_stops_the_reports(tmp_path):
    with pytest.raises(TableError, match="drift_quantized"):
        write(reports(tmp_path / "bad", [block(0, drift=math.nan)]).report())


def test_the_drift_of_every_channel_is_written_as_it_was_measured(written, export):
    table = DRIFT.read(written["drift.parquet"])
    assert len(table) == 4 * 2 * 8
    measured = reports(export).drift["norm tweak"]
    rows = table[table["stage"] == "norm tweak"]
    assert rows["variance"].tolist() == measured.variance.ravel().tolist()
    assert written["drift-channels.png"].read_bytes().startswith(b"\x89PNG")
    assert "Mean and variance of every channel: drift-channels.png" in text(written, "summary.md")


def test_the_page_shows_the_picture_of_the_channels(written):
    picture = base64.b64encode(written["drift-channels.png"].read_bytes()).decode()
    assert f'src="data:image/png;base64,{picture}"' in text(written, "report.html")


def test_the_final_tune_has_a_line_and_a_column_of_its_own(written, tmp_path):
    off = write(reports(tmp_path / "without", final_tune=False).report())
    without = {path.name: path for path in off}
    assert written["drift.png"].read_bytes() != without["drift.png"].read_bytes()
    head = '<th scope="col" class="number">final tune</th>'
    assert head in text(written, "report.html")
    assert head not in text(without, "report.html")
    behind = reports(tmp_path / "without").drift["final tune"].relative_norm()
    assert f">{behind[1]:.4f}</td>" in text(written, "report.html")


def test_a_channel_that_cannot_have_drifted_so_stops_the_reports(tmp_path):
    bad = reports(tmp_path / "bad")
    bad.drift["quantized"].square_error[1, 3] = 0.0
    with pytest.raises(TableError, match=r"square_error not below \(mean - mean_float\)"):
        write(bad.report())


def test_a_row_of_the_page_is_a_block_with_numbers_a_person_can_read(written):
    rows = block_rows(BLOCKS.read(written["blocks.parquet"]))
    assert rows[1] == {
        "block": 1,
        "drift RTN": 0.5,
        "drift": 0.3,
        "tweaked": 0.27,
        "norm tweak": "rolled back",
        "output error": 0.125,
        "weight error": 0.25,
        "bits": 3,
        "damping raised": 0,
    }


@pytest.mark.parametrize("name", ["Tiny.llama_w3", "a--b", "pythia-160m-w2g64"])
def test_artifact_keys_are_lower_case_with_single_dashes(name):
    from prefect.client.schemas.actions import ArtifactCreate

    key = artifact_key(name, "blocks")
    assert ArtifactCreate(key=key).key == key
    assert key.endswith("-blocks")
    assert "--" not in key


def test_the_page_of_the_run_gets_the_same_content(engine_environment, session_api, monkeypatch):
    from prefect import flow
    from prefect.artifacts import Artifact

    monkeypatch.setenv("NORMTWEAK_HOME", str(engine_environment))
    exports = engine_environment / "exports"

    @flow
    def reporting() -> None:
        publish(reports(exports / "export-w3").report())

    reporting()
    table = Artifact.get("tiny-llama-w3-blocks")
    assert table.type == "table"
    assert '"norm tweak": "rolled back"' in table.data
    calibration = Artifact.get("tiny-llama-w3-calibration")
    folder = reports(exports / "export-w3").folder
    assert calibration.data == (folder / "calibration.md").read_text()
    summary = Artifact.get("tiny-llama-w3-summary")
    beginning = (folder / "summary.md").read_text().partition("(drift.png)")[0]
    assert summary.data.startswith(f"{beginning}(data:image/png;base64,")
    assert summary.description == "Perplexity +34.5 % against the float model"
