"""A quantized model as a dense one in memory: what is trained end to end, and measured."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from normtweak_core.activations.rounding import put_linear, round_inputs
from normtweak_core.experts.stacked import ExpertLinear
from normtweak_core.finetune.scales import ScaleLinear
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.structure import find_linears, set_linear_weight
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.tweak.tweak import norm_parameters


def dense_model(
    folder: Path,
    layers: Mapping[str, QuantizedWeight],
    masters: Mapping[str, Tensor],
    dtype: torch.dtype,
    export_dtype: torch.dtype,
    device: str,
    others: Mapping[str, Tensor] | None = None,
) -> PreTrainedModel:
    """Return the float model with dequantized linears and with norms as they are exported.

    Args:
        folder: Of the float model.
        layers: Quantized linears by full module name.
        masters: Float32 values of tweaked norm parameters by full name.
        dtype: What the model computes in.
        export_dtype: What norms are rounded to.
        device: Where it lives.
        others: What takes the place of the float model's other parameters, by full name.
    """
    model = load_causal_lm(folder, dtype, device)
    for name, value in (others or {}).items():
        model.get_parameter(name).data.copy_(value)
    linears = find_linears(model)
    for name, weight in layers.items():
        set_linear_weight(linears[name], weight.dequantize().to(device))
        if weight.activation_bits is not None:
            round_inputs(model, [name])
    set_norms(model, masters, export_dtype)
    return model


def put_scales(
    model: nn.Module,
    layers: Mapping[str, QuantizedWeight],
    export_dtype: torch.dtype,
) -> None:
    """Let the quantized linears of a model learn their scales; their codes stay.

    Those of experts stay as they are: they are parts of stacked weights, and no modules.

    Args:
        model: As `dense_model` returns it; changed in place.
        layers: Quantized linears by full module name.
        export_dtype: What scales are rounded to.
    """
    linears = find_linears(model)
    for name, weight in layers.items():
        linear = linears[name]
        if isinstance(linear, ExpertLinear):
            continue
        put_linear(model, name, ScaleLinear(linear, weight, export_dtype))


def set_norms(
    model: PreTrainedModel, masters: Mapping[str, Tensor], export_dtype: torch.dtype
) -> None:
    """Give each norm its master, or the value it has, rounded as in the export.

    So is every other parameter that has a master.
    """
    others = {name: model.get_parameter(name) for name in masters}
    for name, parameter in (norm_parameters(model) | others).items():
        parameter.data.copy_(masters.get(name, parameter.data).to(export_dtype))
