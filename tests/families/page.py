"""The matrix of families and formats, as docs/formats.md shows it."""

import re
from collections.abc import Mapping
from typing import Any

from tests.benchmarks.results import table
from tests.families.models import GROUPS
from tests.families.running import CASES, GROUP

Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by family and format
MARK = "families"
MANY = 12  # names are not told one by one
# What in a sentence is a family's own: its kind, numbers, names of modules and of classes.
OWN = re.compile(r"(?<=it is )\S+|\d+|\S*\w[._]\w\S*|\w*LM\w*|\w+(?:Layer|Linear)\b")


def matrix(rows: Rows) -> str:
    """Return the matrix as markdown, with what is refused told beneath it."""
    notes = _Notes()
    cells = [
        [name, *(_cell(name, column, rows.get(name, {}).get(column), notes) for column in CASES)]
        for families in GROUPS.values()
        for name in families
        if name in rows
    ]
    header = ["family", *(case.title for case in CASES.values())]
    return f"{_introduction(rows)}\n\n{table(header, cells)}\n{notes.told()}"


def _introduction(rows: Rows) -> str:
    found = [row for forms in rows.values() for row in forms.values()]
    opened = [row for row in found if "difference" in row]
    largest = max((row["difference"] for row in opened if row["statistic"] == "max"), default=0)
    versions = {name: v for row in opened for name, v in row["versions"].items()}
    told = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    readers = "; ".join(f"{case.title}: {case.reader}" for case in CASES.values())
    failed = sum("failed" in row for row in found)
    return (
        f"{len(rows)} families, each a tiny random model: groups of {GROUP}, GPTQ with "
        "propagation, norm tweak and final tune on text of its own (bitnet: ternary surgery, "
        "untrained), then "
        f"opened by its reader ({readers}). Every dequantized weight was equal bit for bit. A cell "
        "is the largest difference of a logit as a share of the largest (bitnet: the mean one); a "
        f"number in brackets tells why there is none. Of {len(found)} exports {len(opened)} were "
        f"opened, {len(found) - len(opened) - failed} refused and {failed} failed; the largest "
        f"difference is {largest:.2g}. Made by `make families`, with {told}."
    )


def _cell(name: str, column: str, row: Mapping[str, Any] | None, notes: "_Notes") -> str:
    if row is None:
        return ""
    form = CASES[column].form
    if "failed" in row:
        return f"failed [{notes.number(name, form, row['failed'])}]"
    if "refused" in row:
        return f"[{notes.number(name, form, row['refused'])}]"
    why = row.get("given_windows")
    mark = f" [{notes.number(name, 'on given windows', why)}]" if why else ""
    return f"{row['difference']:.2g}{mark}"


class _Notes:
    """Sentences with a number; one that families share but for their own names has one."""

    def __init__(self) -> None:
        self._notes: dict[str, tuple[str, list[str], list[str]]] = {}

    def number(self, name: str, form: str, sentence: str) -> int:
        _, forms, names = self._notes.setdefault(OWN.sub("", sentence), (sentence, [], []))
        forms.append(form)
        names.append(name)
        return list(self._notes).index(OWN.sub("", sentence)) + 1

    def told(self) -> str:
        return "".join(
            f"{number}. {_joined(forms)}, {_joined(names)}: {_plain(sentence)}\n"
            for number, (sentence, forms, names) in enumerate(self._notes.values(), 1)
        )


def _joined(names: list[str]) -> str:
    once = list(dict.fromkeys(names))
    return (
        ", ".join(once)
        if len(once) <= MANY
        else f"{', '.join(once[:3])} and {len(once) - 3} others"
    )


def _plain(sentence: str) -> str:
    """Return a sentence in one line that no Markdown reader takes for something else."""
    return " ".join(sentence.split()).replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")
