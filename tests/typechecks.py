"""Types and shapes of calls within a package, checked while tests run: many of them, not all.

To check a call takes longer than most of these calls take on tiny models. So the first calls of a
function in each test are checked, and later ones now and then; `make long-test` checks them all.
"""

import dataclasses
import functools
import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import jaxtyping

FIRST, EVERY = 8, 32
ALL = "NORMTWEAK_ALL_CALLS" in os.environ

check_whole = jaxtyping.jaxtyped
calls: Counter = Counter()  # by code, of the test that runs: a function can be made in each call


def check_calls(package: str) -> None:
    """Check calls of all functions and dataclasses of a package, before it is imported."""
    if package in sys.modules:
        raise RuntimeError(f"{package} must not be imported before its calls are checked.")
    if not ALL:
        jaxtyping.jaxtyped = check_some  # what the hook writes above every function
    jaxtyping.install_import_hook(package, "beartype.beartype")


def check_some(made: Any = None, *, typechecker: Callable) -> Any:
    """Return a function or class some of whose calls are checked; a function only when called."""
    if made is None:
        return functools.partial(check_some, typechecker=typechecker)
    if inspect.isclass(made):
        if dataclasses.is_dataclass(made) and not hasattr(made.__init__, "__wrapped__"):
            made.__init__ = check_some(made.__init__, typechecker=typechecker)
        return made
    code, checked = made.__code__, None

    @functools.wraps(made)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal checked
        calls[code] += 1
        if calls[code] > FIRST and calls[code] % EVERY:
            return made(*arguments, **named)
        if checked is None:
            checked = check_whole(made, typechecker=typechecker)
        return checked(*arguments, **named)

    return call
