"""A whole model in memory, for generation and evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from normtweak_core.errors import InputError
from normtweak_core.model.architecture import first_line, readable_by_transformers
from normtweak_core.model.checkpoint import stored_tensors
from normtweak_core.model.skeleton import check_weights, load_config


def load_causal_lm(
    folder: Path, dtype: torch.dtype, device: str, allow_unused: bool = False
) -> PreTrainedModel:
    """Return the model of a folder in eval mode without gradients, as ``from_pretrained`` makes it.

    Args:
        folder: A model folder.
        dtype: What it computes in.
        device: Where it lives.
        allow_unused: Whether tensors are passed over that the model has no place for.

    Raises:
        InputError: transformers does not know the model, a file is damaged, a weight is absent or
            of another shape, which ``from_pretrained`` would fill with random numbers, or one is
            no float or not used.
    """
    config = load_config(folder)
    stored_tensors(folder)
    try:
        with no_progress_bar(), readable_by_transformers(folder) as readable:
            model, report = AutoModelForCausalLM.from_pretrained(
                readable,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, in one sentence
                output_loading_info=True,
            )
    except ValueError as error:
        raise InputError(
            f"the model must be a causal language model of transformers; {folder} is not: "
            f"{first_line(error)}"
        ) from error
    absent = sorted(report["missing_keys"])
    mismatched = sorted(entry[0] for entry in report["mismatched_keys"])
    if absent or mismatched:
        raise InputError(
            f"{folder} must hold every weight of {type(model).__name__} in the shape that "
            f"config.json implies; {len(absent + mismatched)} do not fit, "
            f"{(absent + mismatched)[0]} first. Fetch or save the model again."
        )
    if not allow_unused:
        check_weights(model, folder)
    return model.to(device).eval().requires_grad_(False)


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing its own bar for the time of a load."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
