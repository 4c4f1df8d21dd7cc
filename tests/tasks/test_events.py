import contextlib
import os

from tasks.engine import events
from tasks.engine.events import read_events, record
from tasks.engine.root_layout import EVENTS, OLDER_EVENTS
from tasks.stages.training.segments import _written_down

WRITE = """
import sys
from tasks.engine.events import record
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


def test_a_large_file_is_put_aside_once_and_no_more(root, monkeypatch):
    monkeypatch.setattr(events, "LIMIT", 1000)
    for number in range(50):
        record("tick", number=number)
        assert number in {event["number"] for event in read_events()}
    assert (root / EVENTS).stat().st_size < 1200
    assert (root / OLDER_EVENTS).stat().st_size < 1200
    numbers = [event["number"] for event in read_events()]
    assert numbers == list(range(50 - len(numbers), 50))


def test_no_event_is_lost_where_several_processes_put_a_file_aside(root, program):
    short = WRITE.replace("import sys", "from tasks.engine import events; events.LIMIT = 60_000")
    for writer in [program("-c", short, NORMTWEAK_HOME=str(root)) for _ in range(2)]:
        writer.finish()
    numbers = [event["number"] for event in read_events()]
    # 600 lines of 280 bytes: three files' worth, of which the first went.
    assert 220 < len(numbers) < 600
    assert numbers.count(299) == 2


def test_steps_are_written_by_the_span(root, monkeypatch):
    with _written_down() as note:
        for step in range(1, 4001):
            note(step)
    (span,) = read_events()
    assert (span["event"], span["first"], span["last"]) == ("steps", 1, 4000)


def test_an_interrupt_and_a_long_training_write_their_steps_down(root, monkeypatch):
    monkeypatch.setattr("tasks.stages.training.segments.SECONDS_BETWEEN_EVENTS", 0.0)
    with contextlib.suppress(KeyboardInterrupt), _written_down() as note:
        note(7)
        monkeypatch.setattr("tasks.stages.training.segments.SECONDS_BETWEEN_EVENTS", 60.0)
        note(8)
        note(9)
        raise KeyboardInterrupt
    assert [(span["first"], span["last"]) for span in read_events()] == [(7, 7), (8, 9)]
