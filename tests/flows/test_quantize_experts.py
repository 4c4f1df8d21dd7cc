"""A whole run on a mixture of experts, and its version opened again without our code."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from flows.recipes.quantize import Recipe
from tasks.tables.experts import EXPERTS
from tests.core.export.test_experts_export import CONFIGS
from tests.tiny_exports import save_tiny_model

NUM_BLOCKS, NUM_EXPERTS, LINEARS = 2, 12, 2 * (4 + 12 * 3)


@pytest.fixture(scope="module")
def home(engine_environment, session_api):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTWEAK_HOME", str(engine_environment))
        yield engine_environment


@pytest.fixture(scope="module")
def run(home, tmp_path_factory):
    """A function that carries out the recipe and returns its result."""
    from flows.quantize import quantize

    folder = tmp_path_factory.mktemp("mixture")
    save_tiny_model(folder / "model", CONFIGS["qwen3_moe"])
    (folder / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
    recipe = {
        "name": "tiny-mixture",
        "model": {"source": str(folder / "model")},
        "calibration": {"samples": 8, "length": 32, "languages": None},
        "quantization": {"bits": 4, "group_size": 32, "symmetric": True},
        "final_tune": {"steps": 2},
        "evaluation": {"perplexity": {"path": str(folder / "text.txt"), "max_tokens": 64}},
    }
    return lambda: quantize(Recipe.parse(recipe))


@pytest.fixture(scope="module")
def first(run):
    return run()


def test_report_and_version_name_every_expert_with_few_tokens(first):
    folder = Path(first["reports_dir"])
    table = EXPERTS.read(folder / "experts.parquet")
    assert len(table) == NUM_BLOCKS * NUM_EXPERTS
    # 7 windows of 32 tokens that are not held out, two experts each.
    assert table.groupby("block")["tokens"].sum().tolist() == [2 * 7 * 32] * NUM_BLOCKS
    few = table[table["tokens"] < 64]
    assert len(few)
    assert len(few) < len(table)
    assert set(few["statistics"]) == {"all tokens"}
    assert set(table[table["tokens"] >= 64]["statistics"]) == {"routed tokens"}
    summary = (folder / "summary.md").read_text()
    notes = " ".join(first["notes"])
    for row in few.itertuples():
        assert f"{row.expert}: all tokens" in summary
        assert f"{row.expert} ({row.tokens})" in notes
    registered = first["registered"]
    tags = MlflowClient().get_model_version(registered["name"], str(registered["version"])).tags
    told = f"{len(table)}, the least used with {table['tokens'].min()} calibration tokens; "
    assert tags["experts"] == f"{told}{len(few)} with few tokens, named in the notes"
    assert first["metrics"]["experts/fewest_tokens"] == table["tokens"].min()
    assert first["metrics"]["experts/with_few_tokens"] == len(few)
    kept = f"{LINEARS} quantized, 1 in float (outside the blocks), 2 in float (router)"
    assert tags["linears"] == f"100 % of linears accounted for: {kept}"


def test_the_version_opens_without_our_code_as_what_was_verified(first):
    import mlflow
    from transformers import AutoModelForCausalLM

    uri = f"models:/{first['registered']['name']}/{first['registered']['version']}"
    folder = Path(mlflow.artifacts.download_artifacts(uri)) / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    manifest = json.loads((folder / "normtweak.json").read_text())
    entry = manifest["tensors"]["model.layers.1.mlp.experts.gate_up_proj"]
    raw = model.model.layers[1].mlp.experts.gate_up_proj.detach().flatten().view(torch.uint8)
    assert hashlib.sha256(raw.numpy()).hexdigest() == entry["sha256"]
    served = mlflow.pyfunc.load_model(uri)
    (text,) = served.predict(["A text"], params={"max_new_tokens": 4})
    assert isinstance(text, str)


def test_a_lost_block_is_made_again_and_gives_the_same_export(run, first, home):
    seconds = first["blocks"][1]["seconds"]
    (lost,) = [
        path
        for path in (home / "results").glob("block-*")
        if f'"seconds": {seconds}' in path.read_text().replace('\\"', '"')
    ]
    lost.unlink()
    again = run()
    assert {name for name, cached in again["cached"].items() if not cached} == {"block 1"}
    assert again["export_sha256"] == first["export_sha256"]
    assert again["metrics"] == first["metrics"]
