"""Under which names an export stores the tensors of a model.

They are the model's own, but where it mixes experts. Such an export is stored as its source is:
matrix by matrix, which transformers stacks while loading, and under the source's names, which
other programs know.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from normtweak_core.experts.stacked import find_stacks
from normtweak_core.model.skeleton import LazyWeights

WEIGHT = ".weight"


class Naming:
    """Names in the files by names in memory.

    Attributes:
        stacks: Of each stacked weight, its linears in memory from top to bottom.
    """

    def __init__(self, model: nn.Module, source: LazyWeights):
        """Read the names of a model without weights, and of its source."""
        self.stacks = find_stacks(model)
        self._stored: dict[str, str] = {}
        for stack, linears in self.stacks.items():
            stored = source.stored_names(stack)
            self._stored |= {
                f"{linear}{WEIGHT}": one for linear, one in zip(linears, stored, strict=True)
            }
        if self.stacks:
            own = (name for name in source.names("") if name not in self.stacks)
            self._stored |= {name: source.stored_names(name)[0] for name in own}

    def tensor(self, name: str) -> str:
        """Return the stored name of a tensor."""
        return self._stored.get(name, name)

    def linear(self, name: str) -> str:
        """Return what the stored names of a linear's tensors begin with."""
        return self.tensor(f"{name}{WEIGHT}").removesuffix(WEIGHT)


class RecordedNames:
    """The same, as the entries of a manifest tell them."""

    def __init__(self, entries: Mapping[str, Any]):
        """Read the entries of the tensors."""
        self.stacks = {
            name: [one["stored"] for one in entry["linears"]]
            for name, entry in entries.items()
            if "linears" in entry
        }
        self.shapes = {name: entries[name]["shape"] for name in self.stacks}
        self._stored = {
            name: entry["stored"] for name, entry in entries.items() if "stored" in entry
        }

    def tensor(self, name: str) -> str:
        """Return the stored name of a tensor."""
        return self._stored.get(name, name)
