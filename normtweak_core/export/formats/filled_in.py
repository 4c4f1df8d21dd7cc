"""What readers make of a model that fills in weights by name while it is loaded; no weights here.

After loading, transformers lets a model fill in what its files lack. Most ask whether a module is a
linear, and has a weight; GPT-2 and Mamba take the weights of some linears by their names, Falcon
those of linears of its own class. A linear of gptqmodel has no weight that could be written to, and
a packed one of compressed-tensors has none at all: there the reader ends (transformers 5.23,
optimum 2.3, gptqmodel 7.7, compressed-tensors 0.20).
"""

from collections.abc import Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from normtweak_core.errors import InputError

# What a linear of gptqmodel tells of the weight that it does not have.
TOLD = ("device", "dtype", "is_cuda", "ndim", "shape", "requires_grad", "T", "size")
REMEDY = "Use compressed-tensors."


def filled_in(
    model: PreTrainedModel, linears: Iterable[str], told: tuple[str, ...] = ()
) -> str | None:
    """Return a linear whose weight a model asks for by name while it is loaded; None: of none.

    Args:
        model: Without weights, on the meta device; it is of no use afterwards.
        linears: Full names of those that have no weight. Parts of stacked weights are passed over.
        told: What they tell of it all the same.
    """
    modules = dict(model.named_modules())
    for name in linears:
        if name not in modules:
            continue
        if told:  # another class stands there
            model.set_submodule(name, _Replaced(name, modules[name], told))
        else:  # the same, without its weight
            _take_weight(name, modules[name])
    try:
        model.initialize_weights()
    except _WeightNeededError as error:
        return str(error)
    except (RuntimeError, TypeError, AttributeError, ValueError):
        return None  # what else goes wrong without weights is nothing that a reader would meet
    return None


def require_gptq_opened(model: PreTrainedModel, linears: Mapping[str, nn.Module]) -> None:
    """Accept a model whose gptq export transformers opens.

    It puts linears of gptqmodel in the place of `nn.Linear` itself and of a Conv1D, not of a class
    derived from it.

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
    if (name := filled_in(model, linears, TOLD)) is not None:
        raise InputError(
            "export.format: gptq is opened by transformers only where a model does not fill in "
            f"the weights of its linears by name; {type(model).__name__} does so with {name}, and "
            f"loading ends there. {REMEDY}"
        )


def require_packed_opened(model: PreTrainedModel, linears: Iterable[str], rounds: bool) -> None:
    """Accept a model whose linears transformers may keep packed.

    Args:
        model: Without weights, on the meta device; it is of no use afterwards.
        linears: Full names of what is to be quantized.
        rounds: Whether they are to read rounded activations; else they are of several widths.

    Raises:
        InputError: It fills in the weights of some by name.
    """
    if (name := filled_in(model, linears)) is None:
        return
    key, remedy = ("activation_bits", "remove it") if rounds else ("bits", "set one width")
    raise InputError(
        f"must be {'null' if rounds else 'one width'} for a model that fills in the weights of its "
        "linears by name, which transformers has to unpack all at once while it loads them",
        key=f"quantization.{key}",
        found=f"{type(model).__name__} does so with {name}",
        remedy=remedy,
    )


class _WeightNeededError(AttributeError):
    """Something asks for a weight; the message is the name of its linear."""


def _take_weight(name: str, linear: nn.Module) -> None:
    kind = type(linear)

    def missing(module: nn.Module, attribute: str) -> object:
        if attribute == "weight":
            raise _WeightNeededError(name)
        return kind.__getattr__(module, attribute)

    del linear._parameters["weight"]
    linear.__class__ = type(kind.__name__, (kind,), {"__getattr__": missing})


class _Replaced(nn.Module):
    """Stands where a linear without a weight will be."""

    def __init__(self, name: str, linear: nn.Module, told: tuple[str, ...]):
        super().__init__()
        self.weight, self.bias = _NoWeight(name, linear.weight, told), linear.bias


class _NoWeight:
    def __init__(self, name: str, weight: object, told: tuple[str, ...]):
        self._name, self._weight, self._told = name, weight, told

    def __getattr__(self, attribute: str) -> object:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        if attribute in self._told:
            return getattr(self._weight, attribute)
        raise _WeightNeededError(self._name)
