"""What `normtweak status` tells of a state root: held locks, living runs, what waits, the disk."""

import json
import os
import time

import pytest

from flows.cli import main
from tasks.engine.locks import create_locked, exclusive
from tasks.server.api import announce_server
from tasks.server.status import Disk, Held, Status, WorkingRun, status_of
from tests.flows.in_process import run_command

RUN, DEAD = "0a3f1a8a-3d83-4086-8a0a-a436840fbfc1", "11111111-3d83-4086-8a0a-a436840fbfc1"


@pytest.fixture
def root(tmp_path):
    """A root with a living run, a dead one, a model that waits and a damaged one."""
    folder = tmp_path / "state"
    for name in ("locks/runs", "results", "exports", "waiting"):
        (folder / name).mkdir(parents=True)
    (folder / "results" / "block-1").write_bytes(b"x" * 7)
    (folder / "exports" / "model.safetensors").write_bytes(b"x" * 3000)
    (folder / "waiting" / "a.json").write_text(json.dumps({"name": "tiny"}))
    (folder / "waiting" / "b.json").write_text("{")
    events = [
        {"event": "calibrate", "time": 100.0, "pid": 7, "flow_run": DEAD, "part": "build"},
        {"event": "calibrate", "time": 200.0, "pid": 8, "flow_run": RUN, "part": "build"},
        {"event": "block", "time": 260.0, "pid": 8, "flow_run": RUN, "block": 3, "part": "solve"},
    ]
    text = "".join(json.dumps(event | {"key": "0" * 64}) + "\n" for event in events)
    (folder / "events.jsonl").write_text(text)
    (folder / "locks" / "runs" / f"{DEAD}.lock").touch()
    fd = create_locked(folder / "locks" / "runs" / f"{RUN}.lock")
    yield folder
    os.close(fd)


def test_all_of_it_is_told_and_nothing_changes(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with exclusive(root / "locks" / "registry-1.lock"):
        found = status_of(root)
    assert found.runs == (WorkingRun(RUN, 8, 200.0, "block, block 3, solve", 260.0),)
    assert found.stages == 1
    assert found.waiting == ("tiny", "b.json, which cannot be read")
    own = (os.getpid(),)
    assert found.locks == (Held("registry-1.lock", own), Held(f"runs/{RUN}.lock", own))
    assert Disk("exports", 1, 3000, made_again=True) in found.disk
    assert Disk("waiting", 2, 17, made_again=False) in found.disk
    assert found.server is None
    (root / "locks" / "registry-1.lock").unlink()
    changed = {root / "locks"}
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path not in changed}
    assert after == {path: when for path, when in before.items() if path not in changed}


def test_a_server_that_stays_is_named(root):
    with announce_server(root, "http://127.0.0.1:4200/api"):
        assert status_of(root).server == "http://127.0.0.1:4200/api"
    assert status_of(root).server is None


def test_a_run_without_an_event_has_begun(root, capsys):
    (root / "events.jsonl").unlink()
    assert status_of(root).runs == (WorkingRun(RUN, None, None, "nothing yet", None),)
    assert run_command(root, "status") == 0
    assert f"run:             {RUN}: has begun\n" in capsys.readouterr().out


def test_the_command_tells_it_in_lines_and_as_json(root, capsys, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 320.0)
    assert run_command(root, "status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == (
        f"run:             {RUN}, process 8, for 2 min; 60 s ago: block, block 3, solve"
    )
    assert lines[3] == "waits:           tiny: `normtweak register --pending`"
    assert "disk:            exports 3.0 kB, 1 file" in lines
    assert "disk:            waiting 17 bytes, 2 files; nothing makes it again" in lines
    assert run_command(root, "status", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == [
        {
            "flow_run": RUN,
            "pid": 8,
            "began": 200.0,
            "last": "block, block 3, solve",
            "last_time": 260.0,
        }
    ]
    assert told["stages"] == 1


def test_of_a_root_that_is_not_there_nothing_is_told_and_it_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMTWEAK_HOME", str(tmp_path / "none"))
    assert status_of(tmp_path / "none") == Status(str(tmp_path / "none"), None, (), 0, (), (), ())
    assert main(["status"]) == 0
    assert not (tmp_path / "none").exists()
