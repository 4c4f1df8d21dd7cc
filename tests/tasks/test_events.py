import os

from tasks.events import read_events, record

WRITE = """
import sys
from tasks.events import record
for i in range(300):
    record("tick", number=i, text="x" * 200)
"""


def test_an_event_carries_time_pid_and_facts(root):
    record("published", kind="blocks", size=3)
    (event,) = read_events()
    assert (event["event"], event["kind"], event["size"]) == ("published", "blocks", 3)
    assert event["pid"] == os.getpid()
    assert abs(event["time"] - (root / "events.jsonl").stat().st_mtime) < 60
    assert "flow_run" not in event


def test_no_file_means_no_events(root):
    assert read_events(root) == []


def test_a_torn_line_costs_neither_the_lines_before_nor_those_after(root):
    record("first")
    with (root / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "to')
    assert [event["event"] for event in read_events()] == ["first"]
    record("second")
    assert [event["event"] for event in read_events()] == ["first", "second"]


def test_lines_of_several_processes_stay_whole(root, program):
    for writer in [program("-c", WRITE, NORMTWEAK_HOME=str(root)) for _ in range(2)]:
        writer.finish()
    assert [event["number"] for event in read_events()].count(299) == 2
    assert len((root / "events.jsonl").read_text().splitlines()) == len(read_events()) == 600
