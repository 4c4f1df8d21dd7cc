"""A whole model in memory, for generation and evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from normtweak_core.errors import InputError
from normtweak_core.model.architecture import first_line, readable_by_transformers
from normtweak_core.model.checkpoint import FLOATS, stored_tensors
from normtweak_core.model.skeleton import (
    assign,
    build_skeleton,
    check_weights,
    load_config,
    opener,
)
from normtweak_core.model.structure import find_blocks
from normtweak_core.on_demand import read_ends_when_run, read_when_run
from normtweak_core.stored import TORCH_TYPES, read_tensor


def load_causal_lm(
    folder: Path,
    dtype: torch.dtype,
    device: str,
    allow_unused: bool = False,
    given: dict[str, Tensor] | None = None,
) -> PreTrainedModel:
    """Return the model of a folder in eval mode without gradients, as ``from_pretrained`` makes it.

    Args:
        folder: A model folder.
        dtype: What it computes in.
        device: Where it lives.
        allow_unused: Whether tensors are passed over that the model has no place for.
        given: Tensors by the names in the files; None: they are read from there.

    Raises:
        InputError: transformers does not know the model, a file is damaged, a weight is absent or
            of another shape, which ``from_pretrained`` would fill with random numbers, or one is
            no float or not used.
    """
    config = load_config(folder)
    stored_tensors(folder)
    try:
        with no_progress_bar(), readable_by_transformers(folder) as readable:
            # The class itself opens tensors without a folder, which the choice of classes does not.
            reader = opener(folder) if given is None else type(build_skeleton(folder, dtype))
            model, report = reader.from_pretrained(
                readable if given is None else None,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, in one sentence
                output_loading_info=True,
                **({} if given is None else {"state_dict": given}),
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


def mapped_causal_lm(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return `load_causal_lm` whose weights lie in pages of their files, for forward passes.

    Where they are stored in another float type than float32, and this is what it computes in, each
    block has its weights cast while it runs. Any other cast, several stored float types and another
    device than the CPU need the whole model in memory.

    Raises:
        InputError: As `load_causal_lm`.
    """
    stored = stored_tensors(folder)
    kinds = {TORCH_TYPES[place.dtype] for place in stored.values() if place.dtype in FLOATS}
    if device != "cpu" or len(kinds) != 1 or not {dtype} <= kinds | {torch.float32}:
        return load_causal_lm(folder, dtype, device)
    given = {name: read_tensor(place) for name, place in stored.items()}
    model = load_causal_lm(folder, kinds.pop(), device, given=given)
    held = {name: one for name, one in model.state_dict().items() if one.is_floating_point()}
    names = {name: name for name, one in held.items() if one.dtype is not dtype}

    def cast(name: str) -> Tensor:
        return held[name].to(dtype)

    blocks = find_blocks(model)
    for index, block in enumerate(blocks.modules):
        prefix = f"{blocks.prefix}.{index}"
        inside = {name: name for name in names if name.startswith(f"{prefix}.")}
        read_when_run(block, prefix, inside, cast)
    outside = {name: name for name in names if not name.startswith(f"{blocks.prefix}.")}
    assign(model, "", {name: cast(name) for name in outside})
    read_ends_when_run(model, outside, cast)
    return model


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
