"""Exports in one float type after another, until one holds the model as its readers compute it."""

import logging
from collections.abc import Callable
from typing import Any

from normtweak_core.export.config import AnyExportConfig
from normtweak_core.export.formats import checks
from normtweak_core.export.formats.checks import FloatTypeError
from tasks.engine.stage import Found
from tasks.models.work import Work
from tasks.results import FloatType, RefusedExport

log = logging.getLogger(__name__)

EVERY = ("float16", "bfloat16", "float32")
EXACT = ("float32",)  # holds the numbers of every other


def another_float_type(
    allowed: tuple[str, ...] = EVERY,
) -> Callable[[Work, Found], dict[str, Any]]:
    """Return what an export stage asks for once more, where its float type does not hold the model.

    Args:
        allowed: Float types that may take the place of the one that was chosen.
    """

    def again(work: Work, found: Found) -> dict[str, Any]:
        export = found["export"]
        if not isinstance(export, RefusedExport):
            return {}
        chosen = next_float_type(work.recipe.export, found["float type"], export, allowed)
        log.warning("export again: %s", chosen.in_words())
        return {"float type": chosen}

    return again


def next_float_type(
    config: AnyExportConfig,
    chosen: FloatType,
    refused: RefusedExport,
    allowed: tuple[str, ...] = EVERY,
) -> FloatType:
    """Return what takes the place of a float type that does not hold the export.

    Args:
        config: Format and float type asked for; only with auto another one is tried.
        chosen: The float type that was tried, and those before it.
        refused: Why it does not hold.
        allowed: Float types that may take its place.

    Raises:
        FloatTypeError: The one that was asked for does not hold the model, or none does.
    """
    error = FloatTypeError(refused.dtype, refused.why, refused.holds, config.format)
    name = checks.next_float_type(config, error, chosen.refused, allowed)
    return FloatType(dtype=name, refused=chosen.refused | {refused.dtype: refused.why})
