"""Modules that read their weights from disk whenever they run, and hold none in between."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from normtweak_core.model.skeleton import assign

KEPT_WEIGHT = 1 << 26  # bytes of an embedding or a head that stay in memory


def read_when_run(
    module: nn.Module, prefix: str, names: Mapping[str, str], read: Callable[[str], Tensor]
) -> None:
    """Make a module read its parameters before it runs and drop them afterwards.

    All of them at once: some modules read the weight of a part without ever calling the part.

    Args:
        module: To be changed; what it holds now is dropped.
        prefix: Its name in the model.
        names: Of its parameters in the model, each with the name that is to be read.
        read: Returns a parameter.
    """

    def load(*_: object) -> None:
        assign(module, prefix, {name: read(origin) for name, origin in names.items()})

    def drop(*_: object) -> None:
        held = module.state_dict(prefix=f"{prefix}.", keep_vars=True)
        assign(module, prefix, {name: held[name].detach().to("meta") for name in names})

    drop()
    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop, always_call=True)


def read_ends_when_run(
    model: PreTrainedModel, origins: Mapping[str, str], read: Callable[[str], Tensor]
) -> None:
    """Let go of the embedding and the head of a model where they are large, until they run.

    Args:
        model: Holds all that is outside its blocks.
        origins: Of its parameters by name, what is to be read in their place; of those that are
            not among them the model keeps its hold.
        read: Returns a parameter.
    """
    names = {module: name for name, module in model.named_modules()}
    for end in large_ends(model):
        name = f"{names.get(end)}.weight"
        if name in origins:
            read_when_run(end, names[end], {name: origins[name]}, read)


def large_ends(model: PreTrainedModel) -> list[nn.Module]:
    """Return the embedding and the head of a model, as far as they are large and in memory."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = ((end, getattr(end, "weight", None)) for end in ends)
    return [
        end
        for end, weight in weights
        if weight is not None and not weight.is_meta and weight.nbytes > KEPT_WEIGHT
    ]


def origins_of(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return which of some parameters each one of a model is: itself, or one that it is tied to."""
    owners = ((name, *name.rpartition(".")[::2]) for name in names)
    held = {
        id(model.get_submodule(owner)._parameters.get(leaf)): name for name, owner, leaf in owners
    }
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: held[id(one)] for name, one in parameters if id(one) in held}


def num_bytes(module: nn.Module) -> int:
    """Return what parameters and buffers of a module take."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
