"""How far a stage is: bars on a terminal, lines elsewhere."""

import logging
import os
import pty
import re
import subprocess
import sys

import pytest

from tasks import progress
from tasks.progress import Progress

BAR = """
from tasks.progress import Progress
with Progress().stage("calibration", "tokens") as advance:
    for done in range(1, 5):
        advance(done * 1000, 4000)
        __import__("time").sleep(0.3)
"""


def test_a_terminal_sees_a_bar_with_speed_count_and_time_left():
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
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen).decode()
    assert "calibration" in text
    assert "4000/4000 tokens" in text
    assert re.search(r"[\d,]+/s", text)
    assert re.search(r"0:00:0\d 00:0\d", text)  # elapsed, left


def test_elsewhere_there_is_a_line_now_and_then_and_one_at_the_end(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "tasks")
    logging.getLogger("tasks").propagate = True
    with Progress(terminal=False).stage("blocks", "blocks") as advance:
        for done in range(1, 5):
            now[0] += 10
            advance(done, 4)
    assert caplog.messages == [
        "blocks: 2/4 blocks, 0.1 per second, 20 s left",
        "blocks: 4/4 blocks, 0.1 per second",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_kind_follows_standard_error(monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert Progress().terminal is terminal
