"""An ablation of a tiny model: what it writes, what it shares, and that it goes on after a stop."""

import base64
import copy
import json
import statistics
from pathlib import Path

import pandas as pd
import pytest
import yaml

from flows.recipes.ablation import AblationRecipe
from normtweak_core.ablation.config import STUDIES
from tests.engine import artifacts_of
from tests.flows.page_reader import PageReader
from tests.tiny_exports import save_tiny_model, tiny_config

REPOSITORY = Path(__file__).parents[2]
LEFT_OUT = {study: [] for study in STUDIES}
STUDIED = LEFT_OUT | {"loss": ["channel", "mse"], "stage": ["gptq", "norm_tweak", "final_tune"]}
SEEDS = {"loss": 2, "stage": 1}


class StopHereError(Exception):
    """Stands for whatever ends a run between two cells."""


@pytest.fixture(scope="module")
def values(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("ablate")
    save_tiny_model(folder / "model", tiny_config("llama", num_hidden_layers=1), seed=11)
    (folder / "text.txt").write_text("A text to look at what a model makes of it. " * 12)
    return {
        "name": "tiny-ablation",
        "seed": 3,
        "model": {"source": str(folder / "model")},
        "calibration": {"source": "random", "samples": 8, "length": 16},
        "quantization": {"bits": 2, "group_size": 32},
        # Put back with both losses, both would be one export, and the second cell be found.
        "norm_tweak": {"rollback": False},
        "final_tune": {"enabled": False, "steps": 2},
        "evaluation": {"perplexity": {"path": str(folder / "text.txt"), "max_tokens": 64}},
        "ablation": {"studies": STUDIED, "seeds": SEEDS, "text": None},
    }


@pytest.fixture(scope="module")
def recipe(values) -> AblationRecipe:
    return AblationRecipe.parse(copy.deepcopy(values))


@pytest.fixture(scope="module")
def begin(home) -> int:
    """Events before the first of these runs: other tests may share the state root."""
    from tasks.engine.events import read_events

    return len(list(read_events(home)))


@pytest.fixture(scope="module")
def stopped(recipe, home, begin) -> list[str]:
    """Run until the third cell is measured, where the run ends; the names of the cells so far."""
    import flows.ablate as module

    begun: list[str] = []

    class UntilTheThird(module.Execution):
        def visit(self, stage, work, found):
            if stage.name == "evaluate":
                if len(begun) == 2:
                    raise StopHereError
                begun.append(str(work.job.seed))
            return super().visit(stage, work, found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Execution", UntilTheThird)
        with pytest.raises(StopHereError):
            module.ablate(recipe)
    return begun


@pytest.fixture(scope="module")
def first(recipe, home, stopped) -> dict:
    from flows.ablate import ablate

    return ablate(recipe)


def files(result: dict) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(result["results_dir"]).iterdir()}


def test_a_stopped_ablation_goes_on_where_it_was(stopped, first):
    assert stopped == ["3", "4"]
    assert first["cached"] == {
        "base, seed 3": True,
        "base, seed 4": True,
        "loss mse, seed 3": False,
        "loss mse, seed 4": False,
        "stage GPTQ, seed 3": False,
        "stage + final tune, seed 3": False,
    }


def test_a_second_run_computes_nothing_and_writes_the_same_bytes(recipe, first):
    from flows.ablate import ablate
    from tasks.engine.environment import state_root
    from tasks.engine.events import read_events

    before, written = len(list(read_events(state_root()))), files(first)
    again = ablate(recipe)
    assert all(again["cached"].values())
    assert files(again) == written
    assert len(list(read_events(state_root()))) == before  # no stage has begun
    assert {key: again[key] for key in ("cells", "studies", "reading")} == {
        key: first[key] for key in ("cells", "studies", "reading")
    }


def test_cells_that_differ_in_the_final_tune_alone_share_their_blocks(first, begin, home):
    from tasks.engine.events import read_events

    begun = [e for e in list(read_events(home))[begin:] if e["event"] == "block"]
    done = [e["chain"] for e in begun if e["part"] == "done"]
    assert len(done) == len(set(done)) == 5  # base and mse with two seeds each, and GPTQ
    rows = {(row["study"], row["value"], row["seed"]): row for row in first["cells"]}
    tuned, tweaked = rows["stage", "final_tune", 3], rows["stage", "norm_tweak", 3]
    assert tweaked["recipe_sha256"] == rows["base", "base", 3]["recipe_sha256"]
    assert tweaked["recipe_sha256"] == rows["loss", "channel", 3]["recipe_sha256"]
    assert tuned["recipe_sha256"] != tweaked["recipe_sha256"]
    assert tuned["final_tune"] in ("kept", "rolled back")
    assert tweaked["final_tune"] == "off"
    assert tuned["seconds"] > tweaked["seconds"]


def test_the_table_of_cells_holds_what_is_measured_on_the_exports(first, home, values):
    import torch
    from transformers import AutoTokenizer

    from normtweak_core.calibration.text import cut_windows, read_documents
    from normtweak_core.evaluate.divergence import compare
    from normtweak_core.export.loading import load_export
    from normtweak_core.model.loading import load_causal_lm
    from normtweak_core.quantization.report import BlockReport
    from tasks.tables.ablation import ABLATION

    table = ABLATION.read(Path(first["results_dir"]) / "cells.parquet")
    pd.testing.assert_frame_equal(table, pd.DataFrame(first["cells"]))
    assert len(table) == 2 + 2 * 2 + 3
    assert table["is_base"].sum() == 2 + 2 + 1
    row = table[(table["study"] == "loss") & (table["value"] == "mse") & (table["seed"] == 4)]
    exports = {
        json.loads(path.read_text())["payload_sha256"]: path.parent
        for path in (home / "exports").glob("*/normtweak.json")
    }
    export = exports[row["export_sha256"].item()]
    manifest = json.loads((export / "normtweak.json").read_text())
    assert manifest["recipe"]["norm_tweak"]["loss"] == "mse"
    assert manifest["recipe"]["seed"] == 4
    model = Path(values["model"]["source"])
    text = read_documents(Path(values["evaluation"]["perplexity"]["path"]))
    windows = cut_windows(text, AutoTokenizer.from_pretrained(model), 16)[: 64 // 16]
    delivered = getattr(torch, manifest["export"]["dtype"])
    quantized = load_export(export, model, delivered, "cpu")
    found = compare(quantized, load_causal_lm(model, torch.float32, "cpu"), windows).metrics()
    for column, metric in {
        "perplexity_float": "perplexity/float",
        "perplexity": "perplexity/quantized",
        "perplexity_ratio": "perplexity/ratio",
        "kl": "kl/mean",
        "top1_agreement": "top1_agreement",
    }.items():
        assert row[column].item() == pytest.approx(found[metric], rel=1e-6), column
    kept = [block["tweak"]["accepted"] for block in manifest["blocks"]]
    assert row["tweaks_kept"].item() == sum(kept)
    assert row["blocks"].item() == len(kept) == 1
    blocks = [BlockReport.model_validate(block) for block in manifest["blocks"]]
    problems = [problem for block in blocks for problem in block.problems()]
    assert row["problems"].item() == ("; ".join(problems) or "none")


def test_means_and_spreads_are_those_of_the_cells(first):
    for study, rows in first["studies"].items():
        for row in rows:
            cells = [
                cell
                for cell in first["cells"]
                if (cell["study"], cell["value"]) == (study, str(row["value"]))
            ]
            base = {cell["seed"]: cell for cell in first["cells"] if cell["study"] == "base"}
            assert row["seeds"] == [cell["seed"] for cell in cells] == [3, 4][: SEEDS[study]]
            for key in ("perplexity_ratio", "kl", "top1_agreement", "seconds"):
                found = [cell[key] for cell in cells]
                assert row[key]["mean"] == pytest.approx(sum(found) / len(found))
                expected = statistics.stdev(found) if len(found) > 1 else None
                assert row[key]["deviation"] == pytest.approx(expected)
            differences = [cell["kl"] - base[cell["seed"]]["kl"] for cell in cells]
            assert row["against_base"]["kl"]["mean"] == pytest.approx(
                sum(differences) / len(differences), abs=1e-12
            )
    verdicts = {
        (study, row["value"]): row["against_base"]["verdict"]
        for study, rows in first["studies"].items()
        for row in rows
    }
    assert verdicts["loss", "channel"] == verdicts["stage", "norm_tweak"] == "base"
    assert set(verdicts.values()) <= {"base", "better", "worse", "not shown"}


def test_an_ablation_leaves_tables_figures_numbers_and_its_recipe(first, recipe, home, capsys):
    from flows.reports.terminal import ablation_lines, print_lines

    folder, written = Path(first["results_dir"]), files(first)
    assert folder.parent == home / "ablations" / "tiny-ablation"
    assert sorted(written) == [
        "cells.parquet", "loss.png", "recipe.yaml", "report.html", "results.json", "stage.png",
        "tables.md",
    ]  # fmt: skip
    assert AblationRecipe.parse(yaml.safe_load(written["recipe.yaml"])) == recipe
    record = json.loads(written["results.json"])
    assert record["cells"] == first["cells"]
    assert record["base"]["seeds"] == [3, 4]
    text = written["tables.md"].decode()
    rows = {row["value"]: row for row in first["studies"]["stage"]}
    line = next(line for line in text.splitlines() if line.startswith("| + final tune |"))
    cells = [one.strip() for one in line.strip("|").split("|")]
    against = rows["final_tune"]["against_base"]
    assert cells[1:] == [
        against["verdict"],
        "1",
        f"{rows['final_tune']['perplexity_ratio']['mean']:.4f}",
        f"{100 * against['perplexity']['mean']:+.2f} %",
        f"{rows['final_tune']['kl']['mean']:.4f}",
        f"{against['kl']['mean']:+.4f}",
        f"{100 * rows['final_tune']['top1_agreement']['mean']:.1f} %",
        cells[8],
        f"{rows['final_tune']['seconds']['mean']:.0f}",
    ]
    assert "2 bits in groups of 32; GPTQ, propagation 1, norm tweak (channel loss, " in text
    assert "| channel | base | 2 | " in text
    for study, sentence in first["reading"].items():
        assert sentence.startswith("least divergence: ")
        assert f"\nL{sentence[1:]}.\n" in text
        assert study in STUDIED
    print_lines(ablation_lines("tiny-ablation", first))
    shown = capsys.readouterr().out
    assert shown.startswith("ablation:    tiny-ablation\nloss:        least divergence: ")
    assert "2 of 6 cells cached" in shown
    assert f"tables:      {folder}/tables.md\npage:        {folder}/report.html" in shown


def test_the_page_has_the_table_the_picture_and_the_reading_of_every_study(first, recipe):
    written = files(first)
    reader = PageReader(written["report.html"].decode())
    lines = written["tables.md"].decode().splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line[:1] == "|"]
    rows = [row for row in rows if row[0] != "---"]
    studies = [[cell.strip() for cell in row] for table in reader.tables[:2] for row in table]
    assert studies == rows
    pictures = [
        base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        for tag, attributes in reader.elements
        if tag == "img"
    ]
    assert pictures == [written["loss.png"], written["stage.png"]]
    for sentence in first["reading"].values():
        assert sentence[1:] in reader.words
    assert yaml.safe_load(reader.code) == recipe.model_dump(mode="json")
    cells = reader.table("study", "value", "seed", "kl")
    assert [cell["kl"] for cell in cells] == [f"{cell['kl']:.4f}" for cell in first["cells"]]
    problems = [cell["problems"].split("; ") for cell in first["cells"]]
    counts = [str(0 if found == ["none"] else len(found)) for found in problems]
    assert [cell["problems"] for cell in cells] == counts
    # Sorted by what is behind the text.
    kl = [row["kl"]["mean"] for study in first["studies"].values() for row in study]
    assert kl == [row[5] for table in reader.numbers[:2] for row in table[1:]]


def test_the_page_of_the_run_shows_every_study(first):
    found = artifacts_of(first["flow_run_id"])
    # No bar of calibration and float model: the stopped run has left their results.
    stages = ("blocks", "final-tune", "evaluate")
    bars = tuple(f"{stage}-progress" for stage in stages)
    names = ("loss", "stage", "cells", "page", *bars)
    assert set(found) == {f"tiny-ablation-{name}" for name in names}
    assert {found[f"tiny-ablation-{name}"].data for name in bars} == {100.0}
    assert "data:image/png;base64," in found["tiny-ablation-stage"].data
    assert found["tiny-ablation-loss"].description == first["reading"]["loss"]
    assert len(json.loads(found["tiny-ablation-cells"].data)) == len(first["cells"])
