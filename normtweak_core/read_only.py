"""Tells of a model that writes to its own weights while it runs."""

from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from normtweak_core.errors import InputError


class ReadOnlyWeights(TorchDispatchMode):
    """Stops, for the time of a ``with``, whatever would write to a weight of a model.

    The weights may lie in pages of a file that nothing can be written to: the process would end.
    """

    def __init__(self, model: nn.Module):
        """Note where the weights lie."""
        super().__init__()
        self._model = type(model).__name__
        self._places = {
            parameter.untyped_storage().data_ptr(): name
            for name, parameter in model.named_parameters()
            if parameter.device.type != "meta"
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation that writes to no weight.

        Raises:
            InputError: It writes to one.
        """
        for told, value in zip(func._schema.arguments, args, strict=False):
            is_written = told.alias_info is not None and told.alias_info.is_write
            if is_written and isinstance(value, Tensor):
                name = self._places.get(value.untyped_storage().data_ptr())
                if name is not None:
                    raise InputError(
                        f"a model must leave its weights as they are; {self._model} writes to "
                        f"{name} while it runs. Choose another model."
                    )
        return func(*args, **(kwargs or {}))
