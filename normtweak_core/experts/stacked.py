"""The matrices of experts in the stacked weights of transformers, each under a name of its own.

A mixture holds ``gate_up_proj`` [experts, 2 x inner, hidden] and ``down_proj`` [experts, hidden,
inner]; expert e computes ``down_proj[e] (act(gate) * up)`` with ``gate, up = gate_up_proj[e] x``.
To everything that quantizes, these are the linears ``e.gate_proj``, ``e.up_proj`` and
``e.down_proj`` of the mixture; the model itself stays what it is, and so does what it computes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
# The stacked weights, and the linears of one expert that lie in each from top to bottom.
STACKS = {"gate_up_proj": (GATE, UP), "down_proj": (DOWN,)}
# What a mixture says of itself in transformers, and what is read here.
LAYOUT = {
    "has_gate": True,
    "is_concatenated": True,
    "has_bias": False,
    "is_transposed": False,
    "has_post_expert_norm": False,
}


class ExpertLinear(nn.Module):
    """One linear of one expert: a view into the stacked weights, which own the memory.

    It is never called, nor part of the model. Its weight may be read, and written to in place.
    """

    def __init__(self, experts: nn.Module, stack: str, expert: int, part: int):
        """Look at a part of ``experts.<stack>[expert]``."""
        super().__init__()
        self._place = (experts, stack, expert, part)  # in a tuple: no part of this module
        self.bias = None

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The view."""
        experts, stack, expert, part = self._place
        return getattr(experts, stack)[expert].chunk(len(STACKS[stack]))[part]


def is_mixture(module: nn.Module) -> bool:
    """Say whether a module stacks the weights of experts as described above, and nothing else."""
    if any(getattr(module, name, None) is not wanted for name, wanted in LAYOUT.items()):
        return False
    own = dict(module.named_parameters(recurse=False))
    return own.keys() == STACKS.keys() and all(weight.dim() == 3 for weight in own.values())


def find_mixtures(root: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that stack experts, by their names."""
    return {name: module for name, module in root.named_modules() if is_mixture(module)}


def mixture_of(root: nn.Module, linear: str) -> str | None:
    """Return the name of the mixture that a linear is of; None: of none."""
    name = linear.rpartition(".")[0].rpartition(".")[0]
    return name if name and is_mixture(root.get_submodule(name)) else None


def expert_linears(name: str, experts: nn.Module) -> dict[str, ExpertLinear]:
    """Return the linears of a mixture called ``name``, expert by expert."""
    return {
        f"{name}.{expert}.{part}": ExpertLinear(experts, stack, expert, position)
        for expert in range(len(experts.down_proj))
        for stack, parts in STACKS.items()
        for position, part in enumerate(parts)
    }


def stacked_linears(name: str, experts: nn.Module) -> dict[str, list[str]]:
    """Return, for each stacked weight of a mixture, the linears in it from top to bottom."""
    return {
        f"{name}.{stack}": [
            f"{name}.{expert}.{part}" for expert in range(len(experts.down_proj)) for part in parts
        ]
        for stack, parts in STACKS.items()
    }


def find_stacks(root: nn.Module) -> dict[str, list[str]]:
    """Return, for each stacked weight of a model, the linears in it from top to bottom."""
    return {
        stack: linears
        for name, experts in find_mixtures(root).items()
        for stack, linears in stacked_linears(name, experts).items()
    }


def find_routers(root: nn.Module) -> dict[str, nn.Module]:
    """Return what says how much of which expert a token gets: it stays float.

    Modules beside the experts with a row for each of them, or with a single one, which weighs an
    expert that all tokens share.
    """
    routers: dict[str, nn.Module] = {}
    for name, experts in find_mixtures(root).items():
        owner = name.rpartition(".")[0]
        rows = (1, len(experts.down_proj))
        for inner, module in root.get_submodule(owner).named_modules():
            weight = module._parameters.get("weight")
            if weight is not None and weight.dim() == 2 and weight.shape[0] in rows:
                routers[f"{owner}.{inner}" if owner else inner] = module
    return routers


@torch.no_grad()
def between(
    experts: nn.Module, expert: int, hidden: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, "tokens inner"]:
    """Return what an expert's ``down_proj`` reads, for some of its inputs."""
    both = nn.functional.linear(hidden, experts.gate_up_proj[expert])
    return experts._apply_gate(both)  # the model's own activation, whatever it is
