"""A float module with the linears of an export in it, ready to be trained."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from normtweak_core.activations.rounding import round_inputs
from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.finetune.linear import GridLinear, LoraGridLinear
from normtweak_core.quantization.weight import QuantizedWeight, with_rounded_inputs
from normtweak_core.randomness import generator
from normtweak_core.tweak.tweak import norm_parameters


def put_on_grids(
    module: nn.Module,
    layers: Mapping[str, QuantizedWeight],
    replaced: Mapping[str, Tensor],
    config: FinetuneConfig,
    levels: Literal["full", "ternary", "binary"],
    dtype: torch.dtype,
    seed: int,
    prefix: str = "",
) -> nn.Module:
    """Give a float block or model, in place, the linears and parameters of an export; return it.

    What is trained are the linears' latent weights (or their low-rank update), their scales, and
    the norms but for those per attention head; all else is frozen.

    Args:
        module: Float block or causal LM.
        layers: Quantized linears by their name in the module.
        replaced: Other parameters of the export by their name in the module.
        config: Says whether an update of low rank is trained.
        levels: Which levels of the width are used.
        dtype: The export dtype.
        seed: Of the recipe.
        prefix: What names in the module lack in front of those in the whole model, so that a block
            starts as it does in the model.
    """
    module.requires_grad_(False)
    with torch.no_grad():
        for name, value in replaced.items():
            module.get_parameter(name).copy_(value)
    for name, weight in layers.items():
        linear = module.get_submodule(name)
        if config.lora is None:
            trained = GridLinear(linear, weight, levels, dtype)
        else:
            random = generator(seed, f"lora {prefix}{name}")
            trained = LoraGridLinear(linear, weight, levels, dtype, config.lora.rank, random)
        module.set_submodule(name, trained)
    round_inputs(module, with_rounded_inputs(layers))
    for parameter in norm_parameters(module).values():
        parameter.requires_grad_(True)
    return module.eval()


def peak_rates(module: nn.Module, config: FinetuneConfig) -> dict[str, float]:
    """Return the peak learning rate of every trained parameter.

    That of a low-rank update is ``lr_ratio`` times the mean scale of its layer, so that a step is
    the same share of a level in every layer (EfficientDM, arXiv 2310.03270).
    """
    rates = {n: config.scale_lr for n, p in module.named_parameters() if p.requires_grad}
    for name, layer in grid_linears(module).items():
        if isinstance(layer, LoraGridLinear):
            rate = config.lora.lr_ratio * layer.grid.scales.abs().mean().item()
            rates |= {f"{name}.lora_a": rate, f"{name}.lora_b": rate}
        else:
            rates[f"{name}.weight"] = config.lr
    return rates


def grid_linears(module: nn.Module) -> dict[str, GridLinear]:
    """Return the linears on grids by name."""
    return {n: layer for n, layer in module.named_modules() if isinstance(layer, GridLinear)}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all trained parameters, on the CPU."""
    return {
        name: parameter.detach().cpu().clone()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


@torch.no_grad()
def load_trained(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put trained parameters back.

    Raises:
        ValueError: The state is that of other parameters.
    """
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if parameters.keys() != state.keys():
        differing = sorted(parameters.keys() ^ state.keys())
        raise ValueError(f"a state must hold what is trained; {differing[0]} is in only one")
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
