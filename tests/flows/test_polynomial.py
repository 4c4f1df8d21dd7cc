"""The polynomial study as a person meets it: recipe, mistakes, a whole run, a run that stops."""

import base64
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from flows.recipes.polynomial import PolynomialRecipe
from normtweak_core.errors import InputError
from normtweak_core.polynomial.config import cells_of
from normtweak_core.settings import known_keys
from tests.engine import artifacts_of
from tests.flows.command_line import REPOSITORY, normtweak
from tests.flows.page_reader import PageReader

TINY = {
    "name": "tiny-study",
    "device": "cpu",
    "evaluations": 2,
    "samples": {"train": 256, "test": 32},
    "network": {"hidden_layers": 1, "hidden_width": 8},
    "float_training": {"epochs": 2, "batch": 32, "lr": 1e-2},
    "grid": {"bits": [8, 1.58], "epochs": 1, "batch": 32},
    "lora": {"rank": 2, "lr_scale": 0.2},
}
# Another accepted value of each key. A new key of the recipe fails here until it is listed.
OTHER = {
    "seed": 1,
    "evaluations": 3,
    "samples.train": 255,
    "samples.test": 33,
    "samples.degree": 5,
    "network.hidden_layers": 2,
    "network.hidden_width": 9,
    "float_training.epochs": 1.5,
    "float_training.batch": 16,
    "float_training.lr": 2e-2,
    "grid.bits": [8, 1],
    "grid.starts": ["pretrained"],
    "grid.learning_rates": [1e-3],
    "grid.epochs": 0.5,
    "grid.batch": 16,
    "lora.enabled": False,
    "lora.rank": 3,
    "lora.lr_scale": 0.1,
}
NO_STAGE = {"name", "device"}  # the name of the run; what decides the machine, not the numbers


def refused(**changes) -> str:
    with pytest.raises(InputError) as error:
        PolynomialRecipe.parse({**TINY, **changes})
    return str(error.value)


def changed(key: str, value: object) -> PolynomialRecipe:
    section, _, leaf = key.rpartition(".")
    data = {**TINY, section: {**TINY[section], leaf: value}} if section else {**TINY, leaf: value}
    return PolynomialRecipe.parse(data)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sample": {}}, "sample is not a recipe key; did you mean samples?"),
        ({"grid": {"bit": [8]}}, "grid.bit is not a recipe key; did you mean grid.bits?"),
        ({"rank": 4}, "rank is not a recipe key; did you mean lora.rank?"),
        (
            {"grid": {"bits": [8, 3]}},
            "grid.bits may hold 8, 4, 2, 1.58 and 1; found 3: leave it out.",
        ),
        (
            {"grid": {"bits": [8, 8.0]}},
            "every value of a list must stand there once; found [8.0, 8.0].",
        ),
        ({"samples": {"degree": 7}}, "samples.degree must be at most 6; found 7."),
        ({"float_training": {"lr": 0}}, "float_training.lr must be greater than 0; found 0."),
        (
            {"float_training": {"lr": float("inf")}},
            "float_training.lr must be a finite number; found inf.",
        ),
        ({"grid": {"batch": 257}}, "grid.batch must be at most samples.train, 256; found 257."),
        ({"device": "tpu"}, "device must be auto, cpu or cuda; found 'tpu'."),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_mistake_in_the_recipe_is_one_sentence(changes, sentence):
    assert refused(**changes) == sentence


def test_the_full_study_is_what_the_defaults_say():
    recipe = PolynomialRecipe.load(REPOSITORY / "conf/polynomial.yaml")
    assert recipe == PolynomialRecipe()
    assert recipe.samples.train == 2_000_000
    assert recipe.float_training.epochs == 41
    assert recipe.grid.epochs == 10
    assert len(cells_of(recipe.grid, recipe.lora)) == 25


def test_the_small_study_has_every_cell_of_the_full_one():
    small = PolynomialRecipe.load(REPOSITORY / "conf/polynomial-small.yaml", ["seed=3"])
    full = PolynomialRecipe()
    assert small.seed == 3
    assert small.grid.bits == full.grid.bits
    assert small.grid.starts == full.grid.starts
    assert small.grid.learning_rates == full.grid.learning_rates


def test_every_key_of_the_recipe_is_accounted_for():
    assert set(known_keys(PolynomialRecipe)) == {*OTHER, *NO_STAGE}


@pytest.mark.parametrize("key", OTHER)
def test_changing_a_key_changes_a_stage(key, engine_environment):
    assert stage_keys(changed(key, OTHER[key])) != stage_keys(PolynomialRecipe.parse(TINY))


def test_what_does_not_concern_a_cell_does_not_change_it(engine_environment):
    before = stage_keys(PolynomialRecipe.parse(TINY))
    for key in ("grid.bits", "grid.starts", "grid.learning_rates", "lora.rank"):
        after = stage_keys(changed(key, OTHER[key]))
        common = before.keys() & after.keys()
        assert common
        assert all(before[name] == after[name] for name in common)
    # A random start does not read the float network.
    after = stage_keys(changed("float_training.lr", 2e-2))
    same = {name for name in before if before[name] == after[name]}
    assert same == {name for name in before if "random" in name}


def stage_keys(recipe: PolynomialRecipe) -> dict[str, str]:
    """Return the key of every stage; the float network's content is the key of its stage."""
    from flows.polynomial import POLYNOMIAL
    from tasks.stages.polynomial import PolynomialResult, PolynomialWork
    from tests.flows.stage_keys import made

    keys: dict[str, str] = {}

    def visit(stage, work, found) -> list:
        parts = {stage.label_of(work, part): part for part in stage.parts(work)}
        keys.update({label: stage.key(work, found, part) for label, part in parts.items()})
        return [made(PolynomialResult, keys[label]) for label in parts]

    POLYNOMIAL.walk(PolynomialWork(recipe, "cpu"), visit)
    return keys


class Command:
    """`normtweak polynomial` in a process of its own."""

    def __init__(self, folder: Path, recipe: dict, server: str):
        self.folder, self.root, self.server = folder, folder / "state", server
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        self.process: subprocess.Popen | None = None

    def start(self, *options: str) -> subprocess.Popen:
        words = ("polynomial", self.folder / "recipe.yaml", "--result", self.folder / "result.json")
        with (
            (self.folder / "out.txt").open("wb") as out,
            (self.folder / "err.txt").open("wb") as err,
        ):
            streams = {"stdout": out, "stderr": err}
            self.process = normtweak(
                self.root, *words, *options, **streams, PREFECT_API_URL=self.server
            )
        return self.process

    def run(self, *options: str) -> dict:
        assert self.start(*options).wait(250) == 0, (self.folder / "err.txt").read_text()
        return json.loads((self.folder / "result.json").read_text())

    def files(self, result: dict) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(result["results_dir"]).iterdir()}


@pytest.fixture(scope="module")
def command(tmp_path_factory, session_api):
    one = Command(tmp_path_factory.mktemp("study"), TINY, session_api)
    yield one
    if one.process and one.process.poll() is None:
        one.process.kill()
        one.process.wait()


@pytest.fixture(scope="module")
def first(command):
    result = command.run()
    return result, command.files(result), (command.folder / "out.txt").read_text()


@pytest.mark.timeout(300)
def test_a_study_leaves_a_table_two_figures_and_the_numbers(first, command):
    result, files, shown = first
    assert sorted(files) == [
        "curves.png", "examples.png", "recipe.yaml", "report.html", "results.json", "table.md",
    ]  # fmt: skip
    assert Path(result["results_dir"]).parent == command.root / "polynomial"
    assert len(Path(result["results_dir"]).name) == 12
    assert PolynomialRecipe.load(
        Path(result["results_dir"]) / "recipe.yaml"
    ) == PolynomialRecipe.parse(TINY)
    record = json.loads(files["results.json"])
    losses = {(c["bits"], c["start"], c["lr"], c["rank"]): c["loss"] for c in record["cells"]}
    assert len(losses) == 10
    assert set(losses.values()) == {row["loss"] for row in result["cells"]}
    assert not any(result["cached"].values())
    lines = files["table.md"].decode().splitlines()
    lead = "**Polynomial study.** Test loss (mean square error, 32 samples). Float network: 0."
    assert lines[2].startswith(lead)
    head = lines.index("| start | learning rate | 8 bits | 1.58 bits |")
    row = next(line for line in lines if line.startswith("| pretrained | 0.001 |"))
    expected = [losses[bits, "pretrained", 1e-3, None] for bits in (8.0, 1.58)]
    assert row.split("|")[3:5] == [f" {loss:.5f} " for loss in expected]
    assert [line.split(" | ")[0] for line in lines[head + 2 : head + 8]] == [
        "| pretrained", "| pretrained", "| pretrained", "| random", "| random", "| LoRA of rank 2",
    ]  # fmt: skip
    assert shown.startswith("study:       tiny-study\nfloat:       test loss 0.")
    assert "reading:     pretrained beats random start: " in shown
    assert all(f"| {claim['claim']} | {claim['verdict']} |" in files["table.md"].decode()
               for claim in record["reading"])  # fmt: skip
    assert not list((command.root / "artifacts" / "polynomial-checkpoints").glob("*/*"))


@pytest.mark.timeout(300)
def test_the_page_of_a_study_has_its_losses_claims_and_pictures_and_is_linked(first, command):
    result, files, _ = first
    reader = PageReader(files["report.html"].decode())
    lines = files["table.md"].decode().splitlines()
    losses = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line[:1] == "|"]
    assert [[cell.strip() for cell in row] for row in reader.tables[0]] == [losses[0], *losses[2:8]]
    claims = reader.table("claim", "verdict", "figures", "detail")
    assert claims == result["reading"]
    pictures = [
        base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        for tag, attributes in reader.elements
        if tag == "img"
    ]
    assert pictures == [files["curves.png"], files["examples.png"]]
    cells = reader.table("width", "start", "loss")
    assert [cell["loss"] for cell in cells] == [f"{row['loss']:.5f}" for row in result["cells"]]
    assert reader.code == files["recipe.yaml"].decode()
    found = artifacts_of(result["flow_run_id"])
    assert set(found) == {f"tiny-study-{name}" for name in ("page", "cells", "training-progress")}
    assert found["tiny-study-training-progress"].data == 100.0
    rows = json.loads(found["tiny-study-cells"].data)
    assert [row["loss"] for row in rows] == [row["loss"] for row in result["cells"]]
    told = found["tiny-study-page"].data  # this server has no page of ours to link to
    assert "# tiny-study" in told
    assert all(cell["loss"] in told for cell in cells)


@pytest.mark.timeout(300)
def test_a_second_run_computes_nothing_and_writes_the_same_bytes(first, command):
    again = command.run()
    assert all(again["cached"].values())
    assert command.files(again) == first[1]


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_repeats_the_running_cell_alone_and_ends_in_the_same_bytes(
    first, command, tmp_path
):
    from tasks.engine.events import read_events

    other = Command(tmp_path, TINY, command.server)
    one = other.start()
    end = time.monotonic() + 250
    try:
        while sum(e["event"] == "polynomial" for e in read_events(other.root)) < 4:
            assert one.poll() is None, (tmp_path / "err.txt").read_text()
            assert time.monotonic() < end
            time.sleep(0.01)
        one.send_signal(signal.SIGKILL)
    finally:
        one.kill()
        one.wait()
    begun = [e["key"] for e in read_events(other.root) if e["event"] == "polynomial"]
    result = other.run()
    again = [e["key"] for e in read_events(other.root) if e["event"] == "polynomial"][len(begun) :]
    assert len(set(begun) & set(again)) <= 1
    assert set(begun) & set(again) <= {begun[-1]}
    assert list(result["cached"].values())[: len(begun) - 1] == [True] * (len(begun) - 1)
    assert other.files(result) == first[1]
