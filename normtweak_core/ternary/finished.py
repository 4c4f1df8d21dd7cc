"""From a trained model to what is exported: ternary linears, and every other tensor as trained."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from normtweak_core.ternary.surgery import trained_blocks, trained_linears
from normtweak_core.ternary.weight import TernaryLinear, ternary_linear


class FinishedLayers(Mapping[str, TernaryLinear]):
    """Every ternary linear by its full name; each is rounded when it is asked for."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        """Look the linears up.

        Args:
            model: After training.
            dtype: Export dtype, which the scales are rounded to.
        """
        self._dtype = dtype
        names = {id(module): name for name, module in model.named_modules()}
        self._linears = {
            f"{names[id(block)]}.{name}": linear
            for block in trained_blocks(model)
            for name, linear in trained_linears(block).items()
        }

    def __getitem__(self, name: str) -> TernaryLinear:
        linear = self._linears[name]
        return ternary_linear(linear.weight, linear.full_gain(), linear.bias, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._linears)

    def __len__(self) -> int:
        return len(self._linears)


def other_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter that belongs to no ternary linear and no extra norm, by full name."""
    taken = {
        id(parameter)
        for block in trained_blocks(model)
        for module in (*trained_linears(block).values(), *block.extra_norms)
        for parameter in module.parameters()
    }
    return {
        name: parameter.detach().cpu()
        for name, parameter in model.named_parameters()
        if id(parameter) not in taken
    }
