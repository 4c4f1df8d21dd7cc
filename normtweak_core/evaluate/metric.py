"""A number of an evaluation: what it is, whose, how sure, and what it is called in flat tables.

Results, tables and the registry hold flat names and values, such as ``piqa/acc/float`` with its
standard error beside it, ``piqa/acc/float_stderr``; a mean that has none of its own model is
``kl/mean`` with ``kl/stderr``. Here is the one place that takes these names apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# What a number can be of: a model, or what lies between two.
MODELS = ("float", "quantized")
BETWEEN = ("ratio", "drop", "mcnemar_p", "lost", "won")
ACCURACIES = ("/acc", "/acc_norm")


@dataclass(frozen=True)
class Metric:
    """A number of an evaluation."""

    name: str  # what is measured, such as "kl" or "piqa/acc"
    value: float
    stderr: float | None = None  # None: a single window, or no estimate
    of: str = ""  # one of MODELS or BETWEEN; empty: the name says it all
    flat: str = ""  # as files and the registry call it

    def named(self) -> dict[str, float]:
        """Return its flat name and value and, where it has one, its standard error beside it."""
        error = {} if self.stderr is None else {stderr_name(self.flat): self.stderr}
        return {self.flat: self.value, **error}

    @property
    def full_name(self) -> str:
        """What people call it, such as "kl" or "piqa/acc/drop"."""
        return f"{self.name}/{self.of}" if self.of else self.name

    @property
    def is_difference(self) -> bool:
        """Whether its sign says which of two models is better."""
        return self.of == "drop" or self.name == "nll_difference"

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a share of the items of a task, or a change of one."""
        return self.name.endswith(ACCURACIES) and self.of not in BETWEEN[2:]


def read_metrics(flat: Mapping[str, float]) -> dict[str, Metric]:
    """Return metrics by their flat names, in their order."""
    return {name: _read(name, flat) for name in flat if not is_stderr(name)}


def is_stderr(name: str) -> bool:
    """Tell whether a flat name is that of a standard error."""
    return name.endswith(("/stderr", "_stderr"))


def stderr_name(flat: str) -> str:
    """Return what the standard error of a flat metric is called."""
    return f"{flat.removesuffix('/mean')}/stderr" if flat.endswith("/mean") else f"{flat}_stderr"


def _read(flat_name: str, flat: Mapping[str, float]) -> Metric:
    name, _, of = flat_name.rpartition("/")
    if of == "mean":
        of = ""
    elif of not in (*MODELS, *BETWEEN):
        name, of = flat_name, ""
    return Metric(name, flat[flat_name], flat.get(stderr_name(flat_name)), of, flat_name)
