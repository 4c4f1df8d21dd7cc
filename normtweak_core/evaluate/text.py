"""Where the text lies that a model is measured on, and how long its windows are; no torch."""

from pathlib import Path

from normtweak_core.calibration.length import require_fit
from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import PerplexityConfig
from normtweak_core.model.source import REFERENCE_PREFIX, ModelFolder
from normtweak_core.paths import given_path

HELD_OUT_TEXT = "held-out.jsonl"  # in the folder of a reference model


def text_path(config: PerplexityConfig, source: ModelFolder) -> Path:
    """Return the text to measure on: the one that is named, or that of a reference model.

    Raises:
        InputError: It does not exist, or none is named and the model ships none.
    """
    if config.path is None:
        if source.name.startswith(REFERENCE_PREFIX):
            return source.path / HELD_OUT_TEXT
        raise InputError(
            "is required for a model that ships no held-out text",
            key="evaluation.perplexity.path",
            found=f"found none for {source.name}",
            remedy="give a .txt or .jsonl file",
        )
    path = given_path(config.path, "evaluation.perplexity.path")
    if not path.is_file():
        raise InputError(
            "must be a text file",
            key="evaluation.perplexity.path",
            found=f"{config.path} does not exist",
        )
    return path


def window_length(config: PerplexityConfig, usual: int, context: int | None) -> int:
    """Return the tokens per window.

    Args:
        config: What to measure on.
        usual: The length where no other is asked for.
        context: The longest window the model was made for; None: no limit.

    Raises:
        InputError: A window is longer than that.
    """
    length = config.length or usual
    require_fit(length, context, "evaluation.perplexity.length", "lower it")
    return length
