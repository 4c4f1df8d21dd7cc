"""Where the blocks of a model are, read from the names in its weight files; no torch."""

import re
from collections import Counter
from collections.abc import Iterable

from normtweak_core.errors import InputError

# In names of lists whose modules read something else than text, beside a text tower.
_OTHER_SENSES = re.compile(r"(?:^|\.)[^.]*(?:vision|visual|image|audio)[^.]*\.")
_NUMBERED = re.compile(r"^(?P<list>(?:[^.]*[^.\d][^.]*\.)*?[^.]+)\.(?P<index>\d+)\.")


def block_list(names: Iterable[str]) -> tuple[str, int]:
    """Return the checkpoint name of the block list and the number of blocks.

    The list is the outermost numbered one that holds the most tensors, outside vision towers.

    Raises:
        InputError: No tensor lies in a numbered list: the model has no blocks.
    """
    tensors: Counter[str] = Counter()
    indices: dict[str, set[int]] = {}
    for name in names:
        found = None if _OTHER_SENSES.search(name) else _NUMBERED.match(name)
        if found:
            tensors[found["list"]] += 1
            indices.setdefault(found["list"], set()).add(int(found["index"]))
    if not tensors:
        raise InputError(
            "the model must be a stack of numbered blocks; its weight files name none: "
            "choose a decoder-only transformer"
        )
    prefix = tensors.most_common(1)[0][0]
    return prefix, max(indices[prefix]) + 1
