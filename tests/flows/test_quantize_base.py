"""A whole run on the codes of another tool: its report and version, a resumed run, a rebuild."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.recipes.quantize import Recipe
from tests.flows.in_process import rebuild_result

pytestmark = pytest.mark.timeout(600)

EXPORTS = Path(__file__).parents[1] / "data" / "exports"


@pytest.fixture(scope="module")
def home(engine_environment, session_api):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTWEAK_HOME", str(engine_environment))
        yield engine_environment


@pytest.fixture(scope="module")
def run(home, tmp_path_factory):
    from flows.quantize import quantize

    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
    recipe = {
        "name": "tiny-base",
        "model": {"source": str(EXPORTS / "float")},
        "base": str(EXPORTS / "autoround-w2"),
        "calibration": {"samples": 8, "length": 32, "languages": None},
        "final_tune": {"steps": 2},
        "evaluation": {"perplexity": {"path": str(folder / "text.txt"), "max_tokens": 64}},
    }
    return lambda: quantize(Recipe.parse(recipe))


@pytest.fixture(scope="module")
def first(run):
    return run()


def test_report_and_version_tell_whose_codes_they_are(first):
    registered, base = first["registered"], str(EXPORTS / "autoround-w2")
    tags = MlflowClient().get_model_version(registered["name"], str(registered["version"])).tags
    told = {"base": base, "quantized_by": "auto-round 0.16.1", "base_license": "not told"}
    told |= {"place.base": base, "method": "base", "bits": "2", "group_size": "32"}
    assert told.items() <= tags.items()
    summary = (Path(first["reports_dir"]) / "summary.md").read_text()
    assert f"those of {base}, bit for bit (quantized by auto-round 0.16.1, licence" in summary


def test_a_run_that_lost_a_block_and_the_streams_ends_in_the_same_bytes(first, run, home):
    for boundary in (home / "artifacts" / "streams").rglob("boundary-*"):
        boundary.unlink()
    for record in (home / "results").glob("block-*"):
        if '"block": 1' in record.read_text().replace('\\"', '"'):
            record.unlink()
    again = run()
    assert again["cached"]["block 0"]
    assert not again["cached"]["block 1"]
    assert again["export_sha256"] == first["export_sha256"]


def test_a_rebuild_gives_the_same_bytes(first, home, tmp_path):
    registered = first["registered"]
    uri = f"models:/{registered['name']}/{registered['version']}"
    code, result = rebuild_result(home, uri, tmp_path / "result.json")
    assert code == 0, json.dumps(result)
    assert result["export_sha256"] == first["export_sha256"]
