"""Exports in one float type after another, until one holds the model as its readers compute it."""

import logging
from collections.abc import Callable
from typing import TypeVar

from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats import checks
from normtweak_core.export.formats.checks import FloatTypeError
from tasks.results import ExportResult, FloatType, RefusedExport

log = logging.getLogger(__name__)

T = TypeVar("T")

EXACT = ("float32",)  # float types that hold the numbers of every other


def until_it_holds(
    config: ExportConfig,
    chosen: FloatType,
    make: Callable[[FloatType], tuple[T, ExportResult | RefusedExport]],
    allowed: tuple[str, ...] = ("float16", "bfloat16", "float32"),
) -> tuple[T, ExportResult]:
    """Return an export that its readers can run, and what it was made by way of.

    Args:
        config: Format and float type asked for; only with auto another one is tried.
        chosen: The float type that the float model has suggested.
        make: Makes everything that depends on the float type, in one that is said.
        allowed: Float types that may take its place.

    Raises:
        FloatTypeError: The one that was asked for does not hold the model, or none does.
    """
    while True:
        made, export = make(chosen)
        if not isinstance(export, RefusedExport):
            return made, export
        chosen = next_float_type(config, chosen, export, allowed)
        log.warning("export again: %s", chosen.in_words())


def next_float_type(
    config: ExportConfig,
    chosen: FloatType,
    refused: RefusedExport,
    allowed: tuple[str, ...] = ("float16", "bfloat16", "float32"),
) -> FloatType:
    """Return what takes the place of a float type that does not hold the export.

    Raises:
        FloatTypeError: As `until_it_holds`.
    """
    error = FloatTypeError(refused.dtype, refused.why, refused.holds, config.format)
    name = checks.next_float_type(config, error, chosen.refused, allowed)
    return FloatType(dtype=name, refused=chosen.refused | {refused.dtype: refused.why})
