"""A run whose widths come from a budget: what is told, what is kept, and what goes on."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from flows.recipes.quantize import Recipe
from tasks.tables.widths import WIDTHS
from tests.flows.in_process import rebuild_result
from tests.tiny_exports import save_tiny_model, tiny_config

pytestmark = pytest.mark.timeout(300)

BUDGET = {"average": 3.6, "choose_from": [2, 3, 4]}


@pytest.fixture(scope="module")
def home(engine_environment, session_api):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTWEAK_HOME", str(engine_environment))
        yield engine_environment


@pytest.fixture(scope="module")
def run(home, tmp_path_factory):
    """A function that carries out the recipe, with other keys, and returns its result."""
    from flows.quantize import quantize

    folder = tmp_path_factory.mktemp("mixed")
    save_tiny_model(folder / "model", tiny_config("llama"))
    (folder / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
    recipe = {
        "name": "tiny-mixed",
        "model": {"source": str(folder / "model")},
        "calibration": {"source": "random", "samples": 8, "length": 32},
        "effort": "fast",
        "evaluation": {"perplexity": {"path": str(folder / "text.txt"), "max_tokens": 64}},
    }

    def carried_out(**changes):
        quantization = {"bits": BUDGET, "group_size": 32}
        return quantize(Recipe.parse({"quantization": quantization} | recipe | changes))

    return carried_out


@pytest.fixture(scope="module")
def first(run):
    return run()


def test_report_table_and_tags_tell_every_width(first):
    folder = Path(first["reports_dir"])
    table = WIDTHS.read(folder / "widths.parquet")
    assert len(table) == 2 * 4 * 3
    chosen = table[table["allotted"]]
    assert len(chosen) == 8
    average = chosen["stored_bits"].sum() / (2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3))
    assert first["metrics"]["bits_per_weight"] == pytest.approx(average, abs=1e-12)
    assert 3.3 < average <= BUDGET["average"]
    told = f"{average:.4f} bits per weight of 3.6 allowed: linears, "
    assert f"{told}" in (folder / "blocks.md").read_text()
    registered = first["registered"]
    tags = MlflowClient().get_model_version(registered["name"], str(registered["version"])).tags
    assert tags["widths"].startswith(told)
    assert tags["bits"] == "3.6"
    manifest = json.loads((Path(first["export_dir"]) / "normtweak.json").read_text())
    for row in chosen.itertuples():
        for name in row.layers.split(", "):
            assert manifest["export"]["widths"][f"model.layers.{row.block}.{name}"] == row.bits


def test_a_lost_measurement_is_made_again_and_nothing_else(run, first, home):
    (lost,) = [
        path
        for path in (home / "results").glob("sensitivity-*")
        if '"block": 1' in path.read_text().replace('\\"', '"')
    ]
    lost.unlink()
    again = run()
    made = {name for name, cached in again["cached"].items() if not cached}
    assert made == {"sensitivity of block 1"}
    assert again["export_sha256"] == first["export_sha256"]


def test_a_rebuild_makes_the_same_export(first, home, tmp_path):
    uri = f"models:/tiny-mixed/{first['registered']['version']}"
    code, result = rebuild_result(home, uri, tmp_path / "r.json")
    assert code == 0
    assert result["export_sha256"] == first["export_sha256"]
