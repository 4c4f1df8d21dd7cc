"""A file that may be another one is read again, whatever process remembers the old one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from normtweak_core.file_memo import SETTLED, WORTH_KEEPING, FileMemo

OLD = 10**18  # ns: in 2001


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """As if all files had been left alone for long."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 2 * SETTLED)


def file_of(path, byte=b"a", size=WORTH_KEEPING):
    path.write_bytes(byte * size)
    os.utime(path, ns=(OLD, OLD))
    return path


class Reads:
    """Reads the first byte, and counts how often."""

    def __init__(self):
        self.count = 0

    def __call__(self, path):
        self.count += 1
        return path.read_bytes()[:1].decode()


def test_a_file_is_read_once_by_all_processes(tmp_path):
    file, read = file_of(tmp_path / "weights"), Reads()
    memo = FileMemo(tmp_path / "memo")
    memo.write_down()
    assert [memo.of(file, "first", read) for _ in range(3)] == ["a"] * 3
    assert FileMemo(tmp_path / "memo").of(file, "first", read) == "a"
    assert read.count == 1
    assert FileMemo(tmp_path / "memo").of(file, "other", lambda path: 7) == 7


def same_times(file):
    file.write_bytes(b"b" * WORTH_KEEPING)


def another_inode(file):
    new = file_of(file.with_name("new"), b"b")
    new.replace(file)


def another_size(file):
    file.write_bytes(b"b" * (WORTH_KEEPING + 1))


@pytest.mark.parametrize("change", [same_times, another_inode, another_size])
def test_bytes_altered_under_the_old_time_are_found(tmp_path, change):
    """In place and of the same size as well: the time of change cannot be set back."""
    file, read = file_of(tmp_path / "weights"), Reads()
    memo = FileMemo(tmp_path / "memo")
    memo.write_down()
    memo.of(file, "first", read)
    change(file)
    os.utime(file, ns=(OLD, OLD))
    assert memo.of(file, "first", read) == "b"
    assert FileMemo(tmp_path / "memo").of(file, "first", read) == "b"


def test_the_same_file_at_another_place_is_read_again(tmp_path):
    file, read = file_of(tmp_path / "weights"), Reads()
    memo = FileMemo(tmp_path / "memo")
    memo.of(file, "first", read)
    file.rename(tmp_path / "moved")
    memo.of(tmp_path / "moved", "first", read)
    assert read.count == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path):
    file = file_of(tmp_path / "weights")
    memo = FileMemo(tmp_path / "memo")

    def read(path):
        file_of(path, b"b")
        return "a"

    assert memo.of(file, "first", read) == "a"
    assert memo.of(file, "first", Reads()) == "b"


def test_what_may_change_within_a_tick_and_what_is_small_stays_off_the_disk(tmp_path, monkeypatch):
    memo = FileMemo(tmp_path / "memo")
    memo.write_down()
    memo.of(file_of(tmp_path / "small", size=WORTH_KEEPING - 1), "first", Reads())
    monkeypatch.undo()  # the clock
    memo.of(file_of(tmp_path / "young"), "first", Reads())
    assert not (tmp_path / "memo").exists()


def test_nothing_is_written_before_it_is_asked_for(tmp_path):
    memo = FileMemo(tmp_path / "memo")
    memo.of(file_of(tmp_path / "weights"), "first", Reads())
    assert not (tmp_path / "memo").exists()
    memo.write_down()
    read = Reads()
    assert FileMemo(tmp_path / "memo").of(tmp_path / "weights", "first", read) == "a"
    assert read.count == 0


def test_a_torn_or_altered_line_is_passed_over_and_spoils_no_other(tmp_path):
    files = [file_of(tmp_path / name, name.encode()) for name in "xyz"]
    path = tmp_path / "memo"
    memo = FileMemo(path)
    memo.write_down()
    memo.of(files[0], "first", Reads())
    whole = path.read_bytes()
    memo.of(files[1], "first", Reads())
    torn = path.read_bytes()[:-9]
    path.write_bytes(torn)  # as a kill leaves it
    memo.of(files[2], "first", Reads())

    read = Reads()
    again = FileMemo(path)
    assert [again.of(file, "first", read) for file in files] == ["x", "y", "z"]
    assert read.count == 1
    path.write_bytes(whole.replace(b'"x"', b'"w"'))
    assert FileMemo(path).of(files[0], "first", Reads()) == "x"


WRITER = """
import sys, time
from pathlib import Path
from normtweak_core import file_memo
now = time.time_ns
time.time_ns = lambda: now() + 2 * file_memo.SETTLED
memo = file_memo.FileMemo(Path(sys.argv[1]))
memo.write_down()
print(flush=True)
while True:
    for file in map(Path, sys.argv[2:]):
        memo.keep(file, "first", file.name * 1000)
"""


def test_writers_that_are_killed_leave_right_values_alone(tmp_path):
    files = [file_of(tmp_path / name, name.encode()) for name in "xyz"]
    command = [sys.executable, "-c", WRITER, str(tmp_path / "memo"), *map(str, files)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        writer.stdout.readline()
    time.sleep(0.2)
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    memo = FileMemo(tmp_path / "memo")
    for file in files:
        assert memo.of(file, "first", lambda path: "read") == file.name * 1000


def test_a_memo_that_cannot_be_written_fails_nothing(tmp_path):
    memo = FileMemo(tmp_path / "absent" / "memo")
    memo.write_down()
    assert memo.of(file_of(tmp_path / "weights"), "first", Reads()) == "a"
