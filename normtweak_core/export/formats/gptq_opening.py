"""Whether stock transformers opens a gptq export of a model, seen from its modules before any work.

It puts linears of gptqmodel in the place of a model's own, and then lets the model fill in what its
files lack. Found by running transformers 5.23 with optimum 2.3 and gptqmodel 7.7:

* in the place of `nn.Linear` itself and of a Conv1D, not of a class derived from it;
* a model that fills in the weight of a linear by its name, as GPT-2 does with ``c_proj``, ends
  there: the linears of gptqmodel have no weight that could be written to.
"""

import contextlib

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from normtweak_core.errors import InputError

# What a linear of gptqmodel tells of the weight that it does not have.
TOLD = ("device", "dtype", "is_cuda", "ndim", "shape", "requires_grad", "T", "size")
REMEDY = "Use compressed-tensors."


def require_opened(model: PreTrainedModel, linears: dict[str, nn.Module]) -> None:
    """Accept a model whose gptq export transformers opens.

    Args:
        model: Without weights, on the meta device; it is of no use afterwards.
        linears: What is to be quantized, by full name.

    Raises:
        InputError: It does not open it.
    """
    for name, linear in linears.items():
        if type(linear) is not nn.Linear and not isinstance(linear, Conv1D):
            raise InputError(
                "export.format: gptq is opened by transformers only where linears are of type "
                f"nn.Linear; {name} is a {type(linear).__name__}, which it would leave random. "
                f"{REMEDY}"
            )
    for name, linear in linears.items():
        model.set_submodule(name, _Replaced(name, linear))
    try:
        # What else goes wrong without weights is nothing that the reader would meet.
        with contextlib.suppress(RuntimeError, TypeError, AttributeError, ValueError):
            model.initialize_weights()
    except _WeightNeededError as error:
        raise InputError(
            "export.format: gptq is opened by transformers only where a model does not fill in "
            f"the weights of its linears by name; {type(model).__name__} does so with {error}, and "
            f"loading ends there. {REMEDY}"
        ) from error


class _WeightNeededError(Exception):
    """Something asks for a weight; the message is the name of its linear."""


class _Replaced(nn.Module):
    """Stands where a linear of gptqmodel will be."""

    def __init__(self, name: str, linear: nn.Module):
        super().__init__()
        self.weight, self.bias = _NoWeight(name, linear), linear.bias


class _NoWeight:
    def __init__(self, name: str, linear: nn.Module):
        self._name, self._weight = name, linear.weight

    def __getattr__(self, attribute: str) -> object:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        if attribute in TOLD:
            return getattr(self._weight, attribute)
        raise _WeightNeededError(self._name)
