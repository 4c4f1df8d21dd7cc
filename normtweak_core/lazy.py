"""Modules that are imported when something of them is first used.

torch and transformers take seconds to import, and a run that finds everything finished needs
neither. A module that may have to do without them names at its top what it uses of them:

    final = lazy("normtweak_core.tweak.final")
    ...
    report, norms = final.final_tune(...)
"""

import importlib
from typing import Any


class _Lazy:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def lazy(name: str) -> Any:
    """Return a stand-in for a module.

    Args:
        name: Its full name; whether there is such a module is found out when it is used.
    """
    return _Lazy(name)
