"""From a trained model to what is exported: linears on their grids, and what is not quantized."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from normtweak_core.finetune.model import grid_linears
from normtweak_core.quantization.weight import QuantizedWeight


class FinishedGrids(Mapping[str, QuantizedWeight]):
    """Every quantized linear by its full name; each is rounded when it is asked for."""

    def __init__(self, model: nn.Module):
        """Look the linears of a trained model up."""
        self._linears = grid_linears(model)

    @property
    def widths(self) -> dict[str, int]:
        """The width of each."""
        return {name: linear.bits for name, linear in self._linears.items()}

    def __getitem__(self, name: str) -> QuantizedWeight:
        return self._linears[name].quantized()

    def __iter__(self) -> Iterator[str]:
        return iter(self._linears)

    def __len__(self) -> int:
        return len(self._linears)


def other_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter that belongs to no quantized linear, by full name."""
    linears = grid_linears(model)
    return {
        name: parameter.detach().cpu()
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] not in linears
    }
