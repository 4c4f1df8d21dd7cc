"""Smoothing: outliers of activations move into weights before both are rounded.

Source: Xiao et al. 2022, SmoothQuant, arXiv 2211.10438: channel j of what linears read is divided
by ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` and their columns are multiplied with it. Where
we differ: X is what the quantized model reads; and not only norms, but also a linear in front takes
the division where that is exact, see `places`.
"""

import copy
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from normtweak_core.activations.places import Place, smoothing_places
from normtweak_core.distributed.ranks import Ranks
from normtweak_core.model.structure import find_linears, find_norms, linear_weight
from normtweak_core.quantization.config import SmoothingConfig
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.streams import share_of


@dataclass(frozen=True)
class Smoothed:
    """A float block of the same function whose linears read smoother activations."""

    block: nn.Module
    divisors: dict[str, Float[Tensor, " in"]]  # of what each linear read before, by its name
    changed: dict[str, Tensor]  # gains and biases that differ, float32, as they are exported


def smoothed(
    block: nn.Module,
    hidden: Float[Tensor, "samples seq hidden"],
    run: RunBlock,
    config: SmoothingConfig,
    export_dtype: torch.dtype,
    ranks: Ranks,
) -> Smoothed:
    """Return a smoothed copy of a float block.

    Args:
        block: Not modified.
        hidden: What the quantized model sees in front of it; the training windows are looked at.
        run: Runs a block on a micro-batch of windows.
        config: Strength.
        export_dtype: What biases are rounded to.
        ranks: Who does it; all return the same.
    """
    places = smoothing_places(block, run, hidden[:1])
    peaks = _peaks(block, places, hidden, run, ranks)
    made, divisors, changed = copy.deepcopy(block), {}, {}
    for place in places:
        factors = _factors(made, place, peaks[place.linears[0]], config.alpha)
        place.divide(made, factors)
        divisors |= dict.fromkeys(place.linears, factors[place.channels])
        changed |= _changed(made, place.source, export_dtype)
    return Smoothed(made, divisors, changed)


def _changed(block: nn.Module, source: str, export_dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what was divided besides a quantized weight; a linear's bias is rounded in place."""
    module = block.get_submodule(source)
    if source in find_norms(block):
        return {f"{source}.{n}": p.float() for n, p in module.named_parameters(recurse=False)}
    if module.bias is None:
        return {}
    module.bias.data.copy_(module.bias.to(export_dtype))
    return {f"{source}.bias": module.bias.float()}


def _factors(
    block: nn.Module, place: Place, peaks: Float[Tensor, " in"], alpha: float
) -> Float[Tensor, " channels"]:
    """Return what each channel of the source is divided by: 1 where nothing is read or weighs."""
    linears = find_linears(block)
    weights = [linear_weight(linears[name]).abs().amax(dim=0).float() for name in place.linears]
    count = next(block.get_submodule(place.source).parameters(recurse=False)).shape[0]
    of_x, of_w = (
        values.new_zeros(count).scatter_reduce_(0, place.channels.to(values.device), values, "amax")
        for values in (peaks, torch.stack(weights).amax(dim=0))
    )
    factors = of_x**alpha / of_w ** (1 - alpha)
    return torch.where((of_x > 0) & (of_w > 0), factors, 1.0)


@torch.no_grad()
def _peaks(
    block: nn.Module, places: list[Place], hidden: Tensor, run: RunBlock, ranks: Ranks
) -> dict[str, Float[Tensor, " in"]]:
    """Return the largest magnitude of each channel that the linears of a place read."""
    linears, found = find_linears(block), {}

    def note(name: str, x: Tensor) -> None:
        found[name] = torch.maximum(found[name], x.abs().flatten(0, -2).amax(dim=0).float())

    with ExitStack() as hooks:
        for place in places:
            name, weight = place.linears[0], linear_weight(linears[place.linears[0]])
            found[name] = weight.new_zeros(weight.shape[1], dtype=torch.float32)
            hook = linears[name].register_forward_pre_hook(
                lambda _, args, name=name: note(name, args[0])
            )
            hooks.callback(hook.remove)
        for part in share_of(hidden, ranks).training if places else ():
            run(block, hidden[part])
    for sent in ranks.collected(list(found.values())):
        for name, peaks in zip(found, sent, strict=True):
            found[name] = torch.maximum(found[name], peaks.to(found[name].device))
    for peaks in found.values():
        ranks.agree(peaks)
    return found
