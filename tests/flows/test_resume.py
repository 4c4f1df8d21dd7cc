"""What is done again after a change, a loss or an altered byte, and that the result is the same."""

import copy
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from flows.checks.preflight import preflight
from flows.recipes.quantize import Recipe
from normtweak_core.errors import InputError
from tasks.engine.events import read_events
from tasks.tables.drift import DRIFT, stages_of
from tests.engine import artifacts_of
from tests.sampled import sampled
from tests.tiny_exports import save_tiny_model, tiny_config

BLOCKS = 4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    save_tiny_model(folder / "model", tiny_config("llama", num_hidden_layers=BLOCKS), seed=31)
    (folder / "text.txt").write_text("A text to look at what a model makes of it. " * 24)
    return {
        "name": "resume-test",
        "model": {"source": str(folder / "model")},
        "calibration": {"source": "random", "samples": 8, "length": 32},
        "quantization": {"bits": 4, "group_size": 32},
        "final_tune": {"steps": 2},
        "evaluation": {"perplexity": {"path": str(folder / "text.txt"), "max_tokens": 128}},
    }


@pytest.fixture(scope="module")
def run(recipe, home):
    """A function that carries out one recipe, with changes, and returns its result."""
    from flows.quantize import quantize

    def carry_out(**changes) -> dict:
        data = copy.deepcopy(recipe)
        for key, value in changes.items():
            place = data
            *sections, leaf = key.split("__")
            for section in sections:
                place = place.setdefault(section, {})
            place[leaf] = value
        return quantize(Recipe.parse(data))

    return carry_out


def executed(result: dict) -> set[str]:
    """Return the stages that were not cached, blocks by their label alone."""
    return {name.rstrip("0123456789 ") for name, cached in result["cached"].items() if not cached}


def to_be_done(recipe: dict, home: Path) -> list[str]:
    """Return the stages that a run of the recipe would not find finished, by their headings."""
    from flows.quantize import QUANTIZE

    wanted = Recipe.parse(recipe)
    plan = QUANTIZE.plan(wanted, preflight(wanted, home))
    return [one.name for one in plan if one.cached < one.parts and one.name != "register"]


@pytest.fixture(scope="module")
def first(run):
    return run()


def test_the_first_run_executes_everything_and_the_second_nothing(run, first, home):
    assert "block" in executed(first)
    shown = artifacts_of(first["flow_run_id"])
    reports = {f"resume-test-{name}" for name in ("blocks", "page", "summary", "calibration")}
    stages = ("calibration", "blocks", "rtn-blocks", "final-tune", "evaluate", "evaluate-float")
    bars = {f"resume-test-{stage}-progress" for stage in stages}
    assert reports | bars == set(shown)
    assert {shown[name].data for name in bars} == {100.0}
    logs = [path.read_text() for path in (home / "logs").glob("*-quantize-*.log")]
    assert any("registered models:/resume-test/1 (candidate" in text for text in logs)
    again = run()
    assert executed(again) == set()
    assert set(artifacts_of(again["flow_run_id"])) == reports
    assert again["export_sha256"] == first["export_sha256"]
    assert again["metrics"] == first["metrics"]
    assert again["registered"]["version"] == first["registered"]["version"]
    assert [row["seconds"] for row in again["blocks"]] == [
        row["seconds"] for row in first["blocks"]
    ]


def test_going_on_needs_room_only_for_what_is_not_there(run, first, recipe, home, monkeypatch):
    wanted = Recipe.parse(recipe)
    disk = preflight(wanted, home).disk
    calibration, streams, blocks, exports, fixed = disk.values()
    left = exports // 2 + fixed
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, left))
    assert left < sum(disk.values()) - calibration - streams - blocks + exports // 4
    assert executed(run()) == set()
    with pytest.raises(InputError, match=r"^this run may write .* of it databases, logs and rep"):
        run(quantization__bits=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, left - 1))
    with pytest.raises(InputError, match=r"^this run may write 33\.\d MB under "):
        run()


def test_report_and_version_account_for_every_linear(first):
    told = f"100 % of linears accounted for: {7 * BLOCKS} quantized"
    told += ", 1 in float (tied to the embedding)"
    folder = Path(first["reports_dir"])
    assert f"| linears | {told} |" in (folder / "summary.md").read_text()
    assert json.loads((folder / "lineage.json").read_text())["linears"] == told
    tags = (
        MlflowClient()
        .get_model_version(first["registered"]["name"], str(first["registered"]["version"]))
        .tags
    )
    assert tags["linears"] == told
    stored = load_file(Path(first["export_dir"]) / "model.safetensors").values()
    assert tags["tensors"] == f"{sum(one.nbytes for one in stored):,} bytes, as predicted"


EXPORTED = {"export", "verify", "size check", "evaluate"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"norm_tweak__lr": 2e-3}, {"block", "final tune", *EXPORTED}),
        ({"final_tune__steps": 3}, {"final tune", *EXPORTED}),
        ({"evaluation__perplexity__max_tokens": 64}, {"evaluate float", "evaluate"}),
        ({"name": "another-name"}, set()),
        ({"registry__alias": "trial"}, set()),
    ],
)
def test_a_change_redoes_only_what_reads_it(run, first, change, expected):
    found = executed(run(**change))
    # Content that comes out the same is not verified or evaluated again.
    assert found <= expected
    assert bool(found) == bool(expected)


# The files that the records of a stage refer to, one of each kind.
KINDS = {
    "calibrate": ("calibration/*.safetensors", "calibration/*.parquet", "calibration/*.json"),
    "block": ("blocks/*.safetensors", "blocks/*.json", "drift/*.safetensors"),
    "final tune": ("final-tune/*.safetensors", "final-tune/*.json"),
    "verify": ("verification/*.json",),
    "export": (
        "export/model.safetensors",
        "export/config.json",
        "export/generation_config.json",
        "export/tokenizer.json",
        "export/normtweak.json",
        "export/verify/probe.safetensors",
    ),
}


def files_of_the_run(first, home, pattern) -> list[Path]:
    """Return the files of a kind that the records of this recipe refer to."""
    if pattern.startswith("export/"):
        return [Path(first["export_dir"]) / pattern.removeprefix("export/")]
    kind, _, name = pattern.partition("/")
    words = [path.read_text() for path in (home / "results").iterdir() if path.is_file()]
    return [
        path
        for path in sorted((home / "artifacts" / kind).glob(name))
        if any(path.name in text for text in words)
    ]


def flip(files: list[Path]) -> dict[Path, bytes]:
    """Alter one bit of every file, and return what they were."""
    clean = {path: path.read_bytes() for path in files}
    assert clean
    for path, data in clean.items():
        flipped = bytearray(data)
        flipped[len(flipped) // 2] ^= 0x10
        path.write_bytes(bytes(flipped))
    return clean


def restore(clean: dict[Path, bytes]) -> None:
    for path, data in clean.items():
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("stage", "pattern"), [(stage, one) for stage, kinds in KINDS.items() for one in kinds]
)
def test_one_altered_byte_is_noticed(first, recipe, home, stage, pattern):
    clean = flip(files_of_the_run(first, home, pattern))
    try:
        assert to_be_done(recipe, home)[0] == {"block": "blocks"}.get(stage, stage)
    finally:
        restore(clean)
    assert to_be_done(recipe, home) == []


@pytest.mark.parametrize("stage", KINDS)
def test_altered_files_are_made_again_and_nothing_else(run, first, home, stage):
    files = {one: files_of_the_run(first, home, one) for one in KINDS[stage]}
    clean = flip([path for paths in files.values() for path in paths])
    before = len(read_events(home))
    result = run()
    assert executed(result) & {stage, "rtn"}
    assert executed(result) <= {stage, "rtn"}, "more was done again than that stage"
    assert result["export_sha256"] == first["export_sha256"]
    assert result["metrics"] == first["metrics"]
    # Other recipes of this root have such files too; this run makes its own again.
    remade = {home / e["path"] for e in read_events(home)[before:] if e["event"] == "published"}
    if stage != "verify":  # its report holds how long it took
        for paths in files.values():
            mine = [path for path in paths if path in remade or stage == "export"]
            assert mine
            assert all(path.read_bytes() == clean[path] for path in mine)
    restore(clean)  # the next case would see a file that is left altered


def test_nothing_is_left_to_do_after_all_that(run, first):
    assert executed(run()) == set()


def test_the_drift_of_every_channel_stands_beside_that_of_the_blocks(first):
    table = DRIFT.read(Path(first["reports_dir"]) / "drift.parquet")
    stages = stages_of(table)
    assert list(stages) == ["round to nearest", "quantized", "norm tweak", "final tune"]
    assert {stage.mean.shape for stage in stages.values()} == {(BLOCKS, 64)}
    for stage, error in (("quantized", "error_before"), ("norm tweak", "error_after")):
        expected = [row[error] for row in first["blocks"]]
        assert stages[stage].relative_norm() == pytest.approx(expected, rel=1e-9)
    # The last is measured in the whole model, the others in streams: the float model is the same.
    for field in ("mean_float", "variance_float"):
        whole, streams = (getattr(stages[name], field) for name in ("final tune", "norm tweak"))
        assert whole == pytest.approx(streams, rel=1e-4, abs=1e-5)
        assert (getattr(stages["round to nearest"], field) == streams).all()
    assert (stages["final tune"].relative_norm() < stages["round to nearest"].relative_norm()).all()


def record_of_block(home, first, index: int) -> Path:
    """Return the stage record of a block of this recipe's own chain."""
    report = next(row for row in first["blocks"] if row["index"] == index)
    (found,) = [
        path
        for path in (home / "results").glob("block-*")
        if f'"seconds": {report["seconds"]}' in path.read_text().replace('\\"', '"')
    ]
    return found


@pytest.mark.parametrize("damage", sampled(["truncate", "flip", "remove"]))
def test_a_damaged_record_of_a_stage_is_a_miss(run, home, damage):
    record = record_of_block(home, run(), 3)
    data = record.read_bytes()
    if damage == "truncate":
        record.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        place = data.index(b"sha256") + 12
        record.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    else:
        record.unlink()
    result = run()
    assert [name for name, cached in result["cached"].items() if not cached] == ["block 3"]
    assert executed(run()) == set()


def test_an_altered_boundary_is_not_used(run, first, home):
    """A torn stream file is as good as none: the finished blocks are run again."""
    record = record_of_block(home, run(), 3)
    for boundary in (home / "artifacts" / "streams").rglob("*.safetensors"):
        data = bytearray(boundary.read_bytes())
        data[len(data) // 2] ^= 0x10
        boundary.write_bytes(bytes(data))
    record.unlink()
    before = len(read_events(home))
    result = run()
    assert result["export_sha256"] == first["export_sha256"]
    assert "replay" in {event["event"] for event in read_events(home)[before:]}


def test_streams_that_are_gone_are_made_again_by_forward_passes(run, first, home):
    for boundary in (home / "artifacts" / "streams").rglob("*.safetensors"):
        boundary.unlink()
    for record in (home / "results").glob("block-*"):
        if '"block": 3' in record.read_text().replace('\\"', '"'):
            record.unlink()
    before = len(read_events(home))
    result = run()
    assert result["export_sha256"] == first["export_sha256"]
    replays = [e["block"] for e in read_events(home)[before:] if e["event"] == "replay"]
    assert replays == [3, 3]  # the run's own chain and the baseline's
    solved = [
        e["block"]
        for e in read_events(home)[before:]
        if e["event"] == "block" and e["part"] == "solve"
    ]
    assert solved == [3, 3]
