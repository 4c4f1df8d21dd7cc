"""What a person has ended is told as such, whatever it became on its way out."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.commands.failures import Terminated, exit_code
from normtweak_core.errors import InputError
from tests.flows.tiny_model import variables_of

REPOSITORY = Path(__file__).parents[2]
INTERRUPTED = "normtweak: interrupted; finished stages are kept"
TERMINATED = "normtweak: ended by SIGTERM; finished stages are kept"


def inside_a_class(error: type[BaseException]) -> None:
    """Arrive while a class is made, as all imports do; Python 3.11 makes a RuntimeError of it."""

    class Attribute:
        def __set_name__(self, owner: type, name: str) -> None:
            raise error

    type("Made", (), {"attribute": Attribute()})


def before_a_cleanup_that_fails(error: type[BaseException]) -> None:
    """Leave something behind in a state in which it cannot be closed."""
    try:
        raise error
    finally:
        raise ConnectionError("the answer to another question was read")


def before_a_complaint(error: type[BaseException]) -> None:
    """Be taken for bad input by whoever reads it."""
    try:
        before_a_cleanup_that_fails(error)
    except ConnectionError as failure:
        raise InputError("a server must answer; it does not: start it") from failure


def ended_by(way: Callable[[type[BaseException]], None], error: type[BaseException]) -> int:
    try:
        way(error)
    except BaseException as found:
        return exit_code(found, "quantize")
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("way", [inside_a_class, before_a_cleanup_that_fails, before_a_complaint])
@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [(KeyboardInterrupt, 130, INTERRUPTED), (Terminated, 143, TERMINATED)],
)
def test_an_interruption_that_became_a_failure_is_an_interruption(
    tmp_path, capsys, way, error, code, sentence
):
    with variables_of(tmp_path):
        assert ended_by(way, error) == code
    assert capsys.readouterr().err.startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_a_failure_after_other_failures_stays_one(tmp_path, capsys):
    def way(error: type[BaseException]) -> None:
        with contextlib.suppress(error):
            raise error
        before_a_cleanup_that_fails(ValueError)

    with variables_of(tmp_path):
        assert ended_by(way, KeyboardInterrupt) == 1
    assert "an unexpected ConnectionError ended the run" in capsys.readouterr().err


WAITS_FOR_EVER = """
import sys, threading
from tasks.server import ending

def main():
    lock = threading.Lock()
    lock.acquire()
    threading._register_atexit(lock.acquire)  # as Prefect's workers are flushed
    if {is_command}:
        ending.process_is_a_command()
    ending.end_within(143, "ended by SIGTERM", seconds=1.0)
    if {is_told}:
        ending.told()
    return 0

sys.exit(main())
"""


def ends(is_command: bool, is_told: bool, limit: float) -> subprocess.CompletedProcess:
    code = WAITS_FOR_EVER.format(is_command=is_command, is_told=is_told)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=limit, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("is_told", "text"), [(False, "normtweak: ended by SIGTERM\n"), (True, "")]
)
def test_a_command_ends_although_something_waits_for_ever_at_its_exit(is_told, text):
    done = ends(True, is_told, 60)
    assert (done.returncode, done.stderr) == (143, text)


def test_a_process_that_is_no_command_is_not_ended():
    with pytest.raises(subprocess.TimeoutExpired):
        ends(False, False, 8)
