"""Two records of the proof beside one another."""

import re
from typing import Any

HASH = re.compile(r"[0-9a-f]{16,64}")
TOLERANCE = 0.2  # of numbers of another machine
# What is decided by comparing numbers, or written by sampling: on another machine it may differ.
CHOSEN = re.compile(
    r"notes|problems|samples|accepted|kept|final_tune|verdict|reading|promotion|aliases|float_type"
)


def differences(before: dict, after: dict) -> tuple[list[str], list[str]]:
    """Return what differs or is gone, and what is new, a line each.

    Args:
        before: A record.
        after: Another one; of another machine, see `near`.
    """
    same = before["machine"] == after["machine"]
    old, new = (dict(leaves(record["cases"])) for record in (before, after))
    found = []
    for key, value in old.items():
        if not same and CHOSEN.search(key):
            continue
        if key not in new:
            found.append(f"{key}: gone; was {value!r}")
        elif new[key] != value and (same or not near(value, new[key])):
            found.append(f"{key}: was {value!r}, is {new[key]!r}")
    return found, [f"{key}: {value!r}" for key, value in new.items() if key not in old]


def leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Return everything in nested dicts that is no dict, with its path."""
    if not isinstance(value, dict):
        return [(name, value)]
    return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{name}/{key}")]


def near(before: Any, after: Any) -> bool:
    """Tell whether two leaves agree as far as two machines do: but for hashes and last bits."""
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(near, before, after))
    first, second = number(before), number(after)
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= TOLERANCE * max(abs(first), abs(second))
    if isinstance(first, str) and isinstance(second, str):
        return HASH.sub("", first) == HASH.sub("", second)
    return first == second


def number(value: Any) -> Any:
    """Return a text that is a number as one; whole numbers count something and stay exact."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
