"""Algorithms that turn a float causal language model into a low-bit one.

``quantize`` takes the whole way; everything it does can be called alone from the folders below.
Importing this package costs nothing: a name is looked up when it is used, and nothing here knows a
workflow engine or a registry. docs/architecture.md has the map of the folders.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normtweak_core.calibration.config import CalibrationConfig
    from normtweak_core.errors import InputError
    from normtweak_core.evaluate.divergence import compare
    from normtweak_core.export.config import ExportConfig
    from normtweak_core.finetune.config import BlockTrainingConfig
    from normtweak_core.library.quantizing import quantize
    from normtweak_core.library.result import Quantized
    from normtweak_core.quantization.config import QuantizationConfig
    from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig

_HOME = {
    "BlockTrainingConfig": "finetune.config",
    "CalibrationConfig": "calibration.config",
    "ExportConfig": "export.config",
    "FinalTuneConfig": "tweak.config",
    "InputError": "errors",
    "NormTweakConfig": "tweak.config",
    "QuantizationConfig": "quantization.config",
    "Quantized": "library.result",
    "compare": "evaluate.divergence",
    "quantize": "library.quantizing",
}
__all__ = [
    "BlockTrainingConfig",
    "CalibrationConfig",
    "ExportConfig",
    "FinalTuneConfig",
    "InputError",
    "NormTweakConfig",
    "QuantizationConfig",
    "Quantized",
    "compare",
    "quantize",
]


def __getattr__(name: str) -> object:
    """Return a name of the library, imported now."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
