import importlib
import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flows.cli import main
from normtweak_core.errors import InputError
from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.streams import Streams
from normtweak_core.tweak.config import NormTweakConfig
from tasks.engine import cleaning
from tasks.engine.artifacts import ArtifactRef
from tasks.engine.environment import FOLDERS
from tasks.engine.locks import create_locked
from tasks.engine.root_layout import EVENTS, KEPT, MADE_AGAIN
from tasks.results import BlockResult
from tasks.stages.chain import BlockChain, ChainSettings, StreamError
from tests.flows.tiny_model import variables_of

DIGEST = "0" * 64
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    """A state root with two finished stages, one of which has lost a file, and leftovers."""
    with variables_of(tmp_path / "state") as root:
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True)
        put(root / "artifacts/blocks/kept.safetensors", 100)
        put(root / "artifacts/blocks/kept.json", 10)
        put(root / "artifacts/blocks/superseded.safetensors", 1000)
        put(root / "artifacts/streams/block-1/boundary-001.safetensors", 5000)
        put(root / "artifacts/blocks/.tmp-a", 7)
        put(root / "exports/.model.x.partial/model.safetensors", 20)
        put(root / "exports/model-w2/model.safetensors", 300)
        put(root / "results/unknown", 3)
        put(root / "logs/one.log", 4)
        put(root / "rebuilds/tiny-1-0123/exports/x/model.safetensors", 40)
        record(root, "block-1", "artifacts/blocks/kept.safetensors", 100)
        record(root, "export-1", "exports/model-w2/model.safetensors", 300)
        record(root, "block-2", "artifacts/blocks/absent.safetensors", 100)
        yield root


def put(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def record(root, key, path, size):
    reference = {"path": path, "size": size, "sha256": DIGEST}
    report = {"path": "artifacts/blocks/kept.json", "size": 10, "sha256": DIGEST}
    data = {"block": 1, "weights": reference, "more": [{"report": report}]}
    text = json.dumps({"class": "tasks.results:BlockResult", "data": data})
    (root / "results" / key).write_text(json.dumps({"result": f"{DIGEST}\n{text}"}))


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} - {
        "locks/in-use.lock"
    }


def test_what_finished_stages_refer_to_stays_and_the_rest_goes(root):
    removed = {one.kind: (one.files, one.size) for one in cleaning.clean(root)}
    size = removed.pop("stage records whose files are gone")
    assert size[0] == 1
    assert removed == {
        "streams": (1, 5000),
        "temporary files": (2, 27),
        "artefacts that no finished stage refers to": (1, 1000),
        "finished stages beyond the limits": (0, 0),
        "exports of such stages": (0, 0),
        "logs beyond the limits": (0, 0),
        "rebuilds": (1, 40),
        "unfinished registrations": (0, 0),
    }
    assert files(root) == {
        "artifacts/blocks/kept.safetensors",
        "artifacts/blocks/kept.json",
        "exports/model-w2/model.safetensors",
        "results/block-1",
        "results/export-1",
        "results/unknown",
        "logs/one.log",
    }


def aged(root, days, *names):
    for name in names:
        when = time.time() - days * 86400
        os.utime(root / name, (when, when))


def test_stages_of_an_age_go_with_what_they_alone_hold(root, capsys):
    put(root / "artifacts/blocks/old.safetensors", 900)
    record(root, "block-old", "artifacts/blocks/old.safetensors", 900)
    put(root / "logs/two.log", 5)
    aged(root, 31, "results/block-old", "results/export-1", "logs/one.log")
    assert main(["clean", "--older-than", "30d"]) == 0
    shown = capsys.readouterr().out
    assert "exports of such stages: 1 file, 300 bytes" in shown
    assert "logs beyond the limits: 1 file, 4 bytes" in shown
    left = files(root)
    assert {"results/block-1", "artifacts/blocks/kept.safetensors", "logs/two.log"} <= left
    assert "artifacts/blocks/kept.json" in left  # of a younger stage too
    assert left.isdisjoint({"results/block-old", "results/export-1", "logs/one.log"})
    assert "artifacts/blocks/old.safetensors" not in left
    assert not (root / "exports/model-w2").exists()


def test_the_oldest_stages_go_until_the_others_take_no_more_than_is_kept(root):
    sizes = {"a": 400, "b": 300, "c": 200}
    for age, (name, size) in enumerate(sizes.items(), start=1):
        put(root / f"artifacts/blocks/{name}.safetensors", size)
        record(root, f"block-{name}", f"artifacts/blocks/{name}.safetensors", size)
        aged(root, 10 - age, f"results/block-{name}")
    aged(root, 20, "results/block-1", "results/export-1", "results/block-2")
    # Of all: a 400, b 300, c 200, kept.safetensors 100, the export 300, absent 100, and kept.json
    # 10, which every record refers to.
    cleaning.clean(root, limits=cleaning.Limits(most=510))
    assert {path.name for path in (root / "results").iterdir()} == {
        "block-b", "block-c", "unknown",
    }  # fmt: skip
    cleaning.clean(root, limits=cleaning.Limits(most=510))
    assert (root / "artifacts/blocks/b.safetensors").is_file()
    cleaning.clean(root, limits=cleaning.Limits(most=509))
    assert {path.name for path in (root / "results").iterdir()} == {"block-c", "unknown"}
    assert (root / "artifacts/blocks/kept.json").is_file()
    cleaning.clean(root, limits=cleaning.Limits(most=0))
    assert {path.name for path in (root / "results").iterdir()} == {"unknown"}


def test_what_waits_for_the_registry_outlives_every_limit(root):
    put(root / "waiting/a.json", 0)
    (root / "waiting/a.json").write_text(json.dumps({"export": "exports/model-w2"}))
    aged(root, 99, "results/export-1", "results/block-1")
    cleaning.clean(root, limits=cleaning.Limits(3600.0, 0))
    assert (root / "exports/model-w2/model.safetensors").is_file()
    assert not (root / "results/block-1").exists()
    (root / "waiting/a.json").write_text("{")
    with pytest.raises(InputError, match=r"what waits under .* must be readable before old stages"):
        cleaning.clean(root, limits=cleaning.Limits(3600.0))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--older-than", "30"], "must be an age such as 12h, 30d or 4w; found '30'"),
        (["--older-than", "0d"], "must be an age such as 12h, 30d or 4w; found '0d'"),
        (["--keep", "much"], "must be a size such as 20GB or 5GiB; found 'much'"),
        (["--keep", "-1"], "must be a size such as 20GB or 5GiB; found '-1'"),
        (["--all", "--keep", "1GB"], "--all removes whatever is made again: leave out"),
    ],
)
def test_limits_that_are_none_are_refused(root, capsys, arguments, sentence):
    before = files(root)
    assert main(["clean", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert files(root) == before


def test_a_second_clean_finds_nothing(root):
    cleaning.clean(root)
    assert all(one.files == one.size == 0 for one in cleaning.clean(root))


def test_all_leaves_the_registry_and_the_history_of_runs(root, capsys):
    for name in MADE_AGAIN:
        put(root / name if "." in name else root / name / "deep" / "file", 9)
    kept = {
        "mlartifacts/models/m/model.safetensors", "mlflow.db", "prefect/prefect.db",
        "locks/registry-writer.id", "locks/runs/owner-1.lock", "notes.txt", "mine/thesis.txt",
    }  # fmt: skip
    for name in [*kept, "locks/chains/block-1.lock", "locks/stages/0.lock", "locks/a.lock"]:
        put(root / name, 9)
    put(root / "locks/registry-0.staging/model/model.safetensors", 70)
    assert main(["clean", "--all"]) == 0
    shown = capsys.readouterr().out
    assert "artifacts: 6 files, 6.1 kB" in shown
    assert "exports: 3 files, 329 bytes" in shown
    assert "ablations: 1 file, 9 bytes" in shown
    assert "events.jsonl: 1 file, 9 bytes" in shown
    assert "unfinished registrations: 1 file, 70 bytes" in shown
    assert f"under {root}" in shown
    assert files(root) == kept


def test_whoever_writes_below_the_root_names_a_place_of_the_list():
    """Or a clean would leave it behind."""
    place = re.compile(r'(?:\broot|state_root\(\)) / (?:f?"([^"/]+)|([A-Z_]+))')
    found = set()
    for path in [*REPOSITORY.glob("flows/**/*.py"), *REPOSITORY.glob("tasks/**/*.py")]:
        for literal, constant in place.findall(path.read_text()):
            module = importlib.import_module(
                ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            )
            value = literal or getattr(module, constant)
            found.add(str(value).partition("/")[0])
    assert {"results", "exports", "ablations", "polynomial", "reference", "logs"} <= found
    assert found <= {*MADE_AGAIN, *KEPT}


def test_a_clean_of_what_can_be_resumed_takes_half_a_registration_and_no_event(root):
    put(root / "locks/registry-0.staging/model/model.safetensors", 70)
    put(root / "ablations/small/.tmp-b", 5)
    put(root / "ablations/small/report.html", 5)
    put(root / EVENTS, 9)
    removed = {one.kind: one.files for one in cleaning.clean(root)}
    assert removed["unfinished registrations"] == 1
    assert removed["temporary files"] == 3
    assert {"ablations/small/report.html", "events.jsonl"} <= files(root)


def test_a_root_can_be_cleaned_again_after_all_of_it(root, capsys):
    assert main(["clean", "--all"]) == main(["clean", "--all"]) == main(["clean"]) == 0
    assert capsys.readouterr().out.count("removed 0 bytes") == 2


def test_what_a_mismatch_of_streams_advises_removes_the_hashes_that_do_not_match(
    root, capsys, monkeypatch
):
    monkeypatch.setattr("normtweak_core.quantization.storage.load_block", lambda *_: ({}, {}))
    streams = Streams(torch.zeros(1, 2, 3), torch.ones(1, 2, 3))
    settings = ChainSettings(
        QuantizationConfig(), NormTweakConfig(), BlockTrainingConfig(), "float16"
    )
    job = SimpleNamespace(model=SimpleNamespace(dtype="float32"))
    chain = BlockChain(job, None, settings, "block-1")
    chain.walk = SimpleNamespace(start=lambda: streams, replay=lambda *arguments: streams)
    weights = ArtifactRef.model_construct(path="artifacts/blocks/kept.safetensors")
    done = BlockResult.model_construct(weights=weights, x_f_sha256=DIGEST, x_q_sha256=DIGEST)
    with pytest.raises(StreamError, match="behind block 0 must be those recorded; this m") as error:
        chain.streams_before(1, [done])
    program, *command = re.search("run `(.+)` and start again", str(error.value))[1].split()
    assert program == "normtweak"
    assert main(command) == 0
    assert list((root / "results").iterdir()) == []
    assert "results: 4 files" in capsys.readouterr().out


def test_the_command_tells_what_and_how_many_bytes(root, capsys):
    assert main(["clean"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "streams: 1 file, 5.0 kB"
    size = int(shown[-1].split()[1])
    assert size == 5000 + 27 + 1000 + 477 + 40
    assert shown[-1] == f"removed {size} bytes (6.5 kB) under {root}"


@pytest.mark.parametrize(
    ("lock", "reason"),
    [
        ("in-use.lock", "a command works on it"),
        ("runs/owner-1.lock", "a run works on it"),
        ("server.lock", "`normtweak ui` or `normtweak serve` runs on it"),
    ],
)
def test_a_root_in_use_is_left_alone(root, lock, reason, capsys):
    before = files(root)
    fd = create_locked(root / "locks" / lock)
    try:
        assert main(["clean", "--all"]) == 2
    finally:
        os.close(fd)
    assert capsys.readouterr().err == (
        f"normtweak: the state under {root} must be unused to be cleaned; {reason}: wait for it or "
        "stop it.\n"
    )
    assert files(root) - {f"locks/{lock}"} == before


def test_the_lock_of_a_dead_run_does_not_hinder(root):
    os.close(create_locked(root / "locks" / "runs" / "owner-1.lock"))
    assert sum(one.files for one in cleaning.clean(root)) == 6


def test_commands_share_a_root_and_a_clean_keeps_them_out(root):
    with cleaning.in_use(root), cleaning.in_use(root):
        pass
    fd = create_locked(root / "locks" / cleaning.USE_LOCK)
    try:
        with (
            pytest.raises(InputError, match=r"`normtweak clean` is at work there: start again"),
            cleaning.in_use(root),
        ):
            pass
    finally:
        os.close(fd)


def test_a_folder_that_is_no_state_root_is_refused(tmp_path, capsys):
    put(tmp_path / "work" / "results" / "thesis.txt", 9)
    with variables_of(tmp_path / "work"):
        assert main(["clean", "--all"]) == 2
    assert "a state root made by normtweak is needed to be cleaned" in capsys.readouterr().err
    assert files(tmp_path) == {"work/results/thesis.txt"}


def test_a_root_that_does_not_exist_is_clean_and_is_not_made(tmp_path, capsys):
    with variables_of(tmp_path / "state") as root:
        assert main(["clean"]) == 0
        assert capsys.readouterr().out == f"removed 0 bytes (0 bytes) under {root}\n"
        assert not root.exists()
