"""What a person has ended is told as such, whatever it became on its way out."""

import contextlib
from collections.abc import Callable

import pytest

from flows.commands.failures import Terminated, exit_code
from normtweak_core.errors import InputError
from tests.flows.tiny_model import variables_of

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
