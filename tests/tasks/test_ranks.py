"""Processes that compute together: they start and end together, and a dead one is told of."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from normtweak_core import memory
from tasks.server.ranks import RankError, RankProcesses, peak_of_ranks

REPOSITORY = Path(__file__).parents[2]
MODULE = "tests.tasks.rank_under_test"
STARTER = f"""
import sys, time
from tasks.server.ranks import RankProcesses
with RankProcesses({MODULE!r}, ["--folder", sys.argv[1], "--waits"], range(1, 3), 3):
    time.sleep(300)
"""


@pytest.fixture(autouse=True)
def variables(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NORMTWEAK_HOME", str(tmp_path))


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def pids(folder: Path, ranks) -> list[int]:
    until(lambda: all((folder / str(rank)).exists() for rank in ranks))
    return [int((folder / str(rank)).read_text().split()[0]) for rank in ranks]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def processes(folder: Path, *arguments: str, ranks=range(1, 3)) -> RankProcesses:
    return RankProcesses(MODULE, ["--folder", str(folder), *arguments], ranks, 3)


def test_each_is_told_its_rank_and_where_the_others_are(tmp_path):
    with processes(tmp_path, ranks=range(3)) as others:
        others.wait()
        port = str(others.store.port)
    for rank in range(3):
        told = (tmp_path / str(rank)).read_text().split()
        assert told[1:] == ["3", str(rank), "127.0.0.1", port, "1"]


def test_the_store_listens_on_the_loopback_alone(tmp_path):
    with processes(tmp_path, "--waits", ranks=range(1, 2)) as others:
        listening = [
            one.laddr
            for one in psutil.Process().net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr.port == others.store.port
        ]
        assert [place.ip for place in listening] == ["127.0.0.1"]


def test_their_memory_counts_while_they_live(tmp_path):
    with memory.limited(8 << 30), processes(tmp_path, "--waits") as others:
        found = pids(tmp_path, (1, 2))
        infos = [psutil.Process(pid).memory_info() for pid in found]
        private = sum(info.rss - info.shared for info in infos)
        assert private > 4 << 20
        counted = memory.held_bytes()
        others.stop()
        alone = memory.held_bytes()
        assert counted - alone == pytest.approx(private, rel=0.2)
        assert peak_of_ranks() >= sum(info.rss for info in infos)
    assert all(map(gone, found))
    assert not list((tmp_path).rglob("*.log"))  # they have said nothing


def test_one_that_is_killed_is_named_with_what_to_do(tmp_path):
    with processes(tmp_path, "--waits") as others:
        _, killed = found = pids(tmp_path, (1, 2))
        others.check()
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(RankError) as caught:
            others.wait()
    assert str(caught.value) == (
        "process 3 of 3 that compute together was ended by SIGKILL (as the system does where "
        "memory runs out), and the others with it; finished stages are kept, and the same command "
        "goes on from there."
    )
    assert all(map(gone, found))


def test_one_that_fails_is_quoted(tmp_path):
    with processes(tmp_path, "--waits", "--fails", "1") as others:
        message = r"process 2 of 3 .* exit code 1 \(no room for the thing\), and .* See .*-2-of-3-"
        with pytest.raises(RankError, match=message):
            others.wait()
        (last,) = pids(tmp_path, (2,))
    assert gone(last)


def test_none_outlives_a_parent_that_is_killed(tmp_path):
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], cwd=REPOSITORY)
    try:
        found = pids(tmp_path, (1, 2))
    finally:
        starter.kill()
        starter.wait()
    until(lambda: all(map(gone, found)), 10)
