"""Errors a caller may catch. Every message says what was required, what was found, what to do."""

import contextlib
from collections.abc import Iterator, Mapping


class InputError(ValueError):
    """The request cannot be carried out as written: a recipe, a file, a model or a format.

    It holds parts, and they become a sentence where it is shown: whoever knows what a key is called
    there says so (`keys_called`), and no finished sentence is edited.

    Attributes:
        text: What is required; of an error that is about no key, the whole sentence.
        key: The key it is about, as the core calls it; empty: none.
        found: What was found instead.
        remedy: What to do.
        given_by: The key whose value has led to it, such as that of a damaged file.
    """

    def __init__(self, text: str, *, key: str = "", found: str = "", remedy: str = ""):
        super().__init__(text)
        self.text, self.key, self.found, self.remedy = text, key, found, remedy
        self.given_by = ""

    def __str__(self) -> str:
        text = f"{self.given_by}: " if self.given_by else ""
        text += f"{self.key} {self.text}" if self.key else self.text
        text += f"; {self.found}" if self.found else ""
        return text + (f": {self.remedy}" if self.remedy else "")

    @property
    def clause(self) -> str:
        """The sentence without its full stop, to be told within another."""
        return str(self).removesuffix(".")

    @property
    def sentence(self) -> str:
        """The whole sentence."""
        text = str(self)
        return text if text.endswith((".", "?", ")")) else f"{text}."


def called(key: str, names: Mapping[str, str]) -> str:
    """Return what a key, or the section it is in, is called by `names`; itself where not at all."""
    for known in sorted(names, key=len, reverse=True):
        if key == known or key.startswith(f"{known}."):
            return names[known] + key.removeprefix(known)
    return key


@contextlib.contextmanager
def keys_called(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors from inside speak of keys by the names that the person knows.

    Args:
        names: By key or section as the core calls it.

    Raises:
        InputError: The one from inside.
    """
    try:
        yield
    except InputError as error:
        error.key = called(error.key, names)
        error.given_by = called(error.given_by, names)
        raise


@contextlib.contextmanager
def given_by(key: str) -> Iterator[None]:
    """Say of errors from inside which key's value has led to them.

    Raises:
        InputError: The one from inside.
    """
    try:
        yield
    except InputError as error:
        error.given_by = error.given_by or key
        raise


class ForeseenError(Exception):
    """A failure that is foreseen: people are told it by its summary, without a traceback."""

    @property
    def summary(self) -> str:
        """What happened, without what only a log has room for."""
        return str(self).partition("\n")[0]


class HessianError(ForeseenError, ArithmeticError):
    """A damped Hessian could not be factorized at any damping that still means something."""


class NonFiniteError(ForeseenError, ArithmeticError):
    """A weight, an activation or a loss is NaN or infinite."""


class VerificationError(ForeseenError, RuntimeError):
    """An independent reader does not find in the export what was quantized."""


class ProblemError(ForeseenError, RuntimeError):
    """The recipe said to fail on this: damping raised, tweak rolled back, layer left float."""
