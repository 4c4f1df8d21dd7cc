"""How far a stage is: bars on a terminal, lines elsewhere."""

import os
import pty
import re
import subprocess
import sys

import pytest

from tasks.engine import progress
from tasks.engine.progress import Progress

BAR = """
import logging, time
from tasks.engine.log_files import log_plain_lines
from tasks.engine.progress import Progress
log_plain_lines()
log = logging.getLogger("tasks.test")
with Progress().stage("calibration", "tokens") as advance:
    for done in range(1, 5):
        advance(done * 1000, 4000)
        time.sleep(0.3)
        log.warning("line %d of four, [bold] as written", done)
log.warning("after the bar")
"""


@pytest.fixture(scope="module")
def seen() -> bytes:
    """What a terminal gets from a bar with lines logged while it is drawn."""
    ours, theirs = pty.openpty()
    variables = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    running = subprocess.Popen([sys.executable, "-c", BAR], stderr=theirs, env=variables)
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert running.wait(60) == 0
    return seen


def test_a_terminal_sees_a_bar_with_speed_count_and_time_left(seen):
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen).decode()
    assert "calibration" in text
    assert "4000/4000 tokens" in text
    assert re.search(r"[\d,]+/s", text)
    assert re.search(r"0:00:0\d 00:0\d", text)  # elapsed, left


def screen(seen: bytes) -> list[str]:
    """What stands on a terminal of endless width and height after these bytes."""
    lines, row, column = [""], 0, 0
    for mark in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", seen.decode()):
        if mark == "\r":
            column = 0
        elif mark == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif mark == "\x1b[2K":
            lines[row] = ""
        elif mark == "\x1b[1A":
            row -= 1
        elif mark[0] == "\x1b":
            assert re.fullmatch(r"\x1b\[([0-9;]*m|\?25[lh])", mark), repr(mark)
        else:
            text = lines[row].ljust(column)
            lines[row] = text[:column] + mark + text[column + len(mark) :]
            column += len(mark)
    return [line.rstrip() for line in lines]


def test_lines_logged_while_a_bar_is_drawn_stand_whole_above_it(seen):
    *lines, bar, after, end = screen(seen)
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in [*lines, after]] == [
        *(f"line {number} of four, [bold] as written" for number in range(1, 5)),
        "after the bar",
    ]
    assert re.match(r"calibration +\S+ 4000/4000 tokens", bar)
    assert end == ""


def test_elsewhere_there_is_a_line_now_and_then_and_one_at_the_end(monkeypatch):
    now, lines = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    # No caplog: what it sees depends on whether an earlier test has switched propagation off.
    monkeypatch.setattr(progress.log, "info", lambda text, *values: lines.append(text % values))
    with Progress(terminal=False).stage("blocks", "blocks") as advance:
        for done in range(1, 5):
            now[0] += 10
            advance(done, 4)
    assert lines == [
        "blocks: 2/4 blocks, 0.1 per second, 20 s left",
        "blocks: 4/4 blocks, 0.1 per second",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_kind_follows_standard_error(monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert Progress().terminal is terminal
