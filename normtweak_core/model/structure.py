"""The parts of a decoder, found by their structure: its blocks, and a block's linears and norms."""

import copy
import functools
import inspect
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from normtweak_core.errors import InputError
from normtweak_core.experts.stacked import expert_linears, find_routers, is_mixture

LINEARS = (nn.Linear, Conv1D)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # their kernels have 3 dimensions and more
HEAD_WIDTHS = ("head_dim", "head_size", "head_v_dim")  # attributes of attention modules
PROBE_SHIFT = 5.0  # any constant that a centred norm removes and another does not
Kind = Literal["layer", "rms", "rms_plus_one", "layer_plus_one", "gated"]


@dataclass(frozen=True)
class Blocks:
    """The decoder blocks of a model, in the order in which they run."""

    prefix: str  # name of their list in the model, such as "model.layers"
    modules: list[nn.Module]


@dataclass(frozen=True)
class Norm:
    """A norm of a block. Its stored ``weight`` is what is trained, whatever its kind."""

    module: nn.Module
    per_head: bool  # acts on what one head computes, not on the stream

    @functools.cached_property
    def kind(self) -> Kind:
        """What it computes. plus_one: gain = 1 + weight; gated: its forward needs a gate as well.

        Found by running a copy on numbers, so that the norm may be on the meta device.
        """
        return _kind(self.module)


def text_tower(model: nn.Module) -> str:
    """Return what the names of a model's text tower begin with: '' where there is no other."""
    if getattr(getattr(model, "config", None), "vision_config", None) is None:
        return ""
    tower = model.get_decoder()
    name = next(name for name, part in model.named_modules() if part is tower)
    return f"{name}." if name else ""


def find_blocks(model: nn.Module) -> Blocks:
    """Return the model's blocks: the module list that holds most of its text tower's parameters.

    Raises:
        InputError: No module list holds a linear layer in each entry, or the model mixes experts
            in a way that is not supported.
    """
    best, most, tower = None, 0, text_tower(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not all(_has_linear(entry) for entry in module):
            continue
        if not name.startswith(tower):
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        if size > most:
            best, most = Blocks(name, list(module)), size
    if best is None:
        raise InputError(
            "the model must be a stack of blocks with linear layers (a module list); "
            f"{type(model).__name__} has none. Choose a decoder-only transformer."
        )
    for module in best.modules:
        _refuse_experts(module)
    return best


def find_linears(block: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers of a block (nn.Linear or Conv1D) by their name inside it.

    Those of experts, whose weights are stacked, are `ExpertLinear` views; what routes tokens to
    experts is no linear here, whatever its type.

    Raises:
        InputError: The block mixes experts in a way that is not supported.
    """
    _refuse_experts(block)
    routers, found = find_routers(block), {}
    for name, module in block.named_modules():
        if isinstance(module, LINEARS) and name not in routers:
            found[name] = module
        elif is_mixture(module):
            found |= expert_linears(name, module)
    return found


def find_norms(block: nn.Module) -> dict[str, Norm]:
    """Return the norms that have a gain, by their name, of a block or a model's text tower."""
    tower = text_tower(block)
    return {
        name: Norm(module, _is_per_head(block, name, module))
        for name, module in block.named_modules()
        if name.startswith(tower) and _is_norm(module)
    }


def linear_weight(module: nn.Module) -> Float[Tensor, "out in"]:
    """Return the weight of a linear layer, rows for outputs; a view, so not to be written to."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def set_linear_weight(module: nn.Module, weight: Float[Tensor, "out in"]) -> None:
    """Overwrite the weight of a linear layer in place, rounded to the layer's dtype.

    Raises:
        ValueError: The shapes differ.
    """
    target = linear_weight(module)
    if target.shape != weight.shape:
        raise ValueError(
            f"the weight must have the shape {list(target.shape)}, got {list(weight.shape)}"
        )
    with torch.no_grad():
        target.copy_(weight)


def _has_linear(module: nn.Module) -> bool:
    return any(isinstance(part, LINEARS) for part in module.modules())


def _refuse_experts(block: nn.Module) -> None:
    """Raise InputError for experts unknown to `is_mixture`: several of one kind, and a router.

    Several are a list of modules with linears, or weights stacked in three dimensions; a router is
    a weight beside them with a row for each. Heads are stacked too, but nothing routes to them.
    """
    for name, module in block.named_modules():
        count = _num_alike(module)
        if count > 1 and not is_mixture(module) and _has_router(block, name, count):
            raise InputError(
                "experts must be stacked as gate_up_proj [experts, 2 x inner, hidden] and "
                "down_proj [experts, hidden, inner], without biases, as those of Mixtral and "
                f"Qwen3-MoE are in transformers; {type(block).__name__} has other experts at "
                f"{name or 'its root'}, which are not supported yet. Choose another model."
            )


def _num_alike(module: nn.Module) -> int:
    """Return how many modules or matrices of one kind a module holds; 0 where it holds none."""
    if isinstance(module, nn.ModuleList):
        return len(module) if all(_has_linear(entry) for entry in module) else 0
    if isinstance(module, CONVOLUTIONS):
        return 0
    # Dimensions of one only broadcast, as in RWKV's time mixing.
    stacked = (p for p in module.parameters(recurse=False) if sum(n > 1 for n in p.shape) >= 3)
    return next((parameter.shape[0] for parameter in stacked), 0)


def _has_router(block: nn.Module, experts: str, count: int) -> bool:
    """Say whether a module beside the experts, or inside what stacks them, has a row for each."""
    owner = block.get_submodule(experts.rpartition(".")[0])
    inside = {id(part) for part in block.get_submodule(experts).modules()}
    beside = [part for part in owner.modules() if id(part) not in inside]
    stack = block.get_submodule(experts)
    if not isinstance(stack, nn.ModuleList):
        beside += [part for part in stack.modules() if part is not stack]
    weights = (getattr(part, "weight", None) for part in beside)
    return any(
        isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[0] == count
        for weight in weights
    )


def _is_norm(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return (
        "norm" in type(module).__name__.lower()
        and not list(module.children())
        and isinstance(getattr(module, "weight", None), Tensor)
        and all(parameter.dim() == 1 for parameter in parameters)
    )


def _kind(norm: nn.Module) -> Kind:
    """Return what a norm computes, seen from what it answers to numbers."""
    needed = [
        parameter
        for parameter in inspect.signature(norm.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        return "gated"
    # Copied by way of the meta device: the values do not matter, and may not be there.
    probe = copy.deepcopy(norm).to("meta").to_empty(device="cpu").float()
    width = probe.weight.numel()
    x = torch.linspace(-1.0, 2.0, width).roll(1).repeat(2, 1) * torch.tensor([[1.0], [3.0]])
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.zero_()
        plus_one = bool(probe(x).any())
        probe.weight.fill_(1.0)
        centred = torch.allclose(probe(x + PROBE_SHIFT), probe(x), atol=1e-3)
    if centred:
        return "layer_plus_one" if plus_one else "layer"
    return "rms_plus_one" if plus_one else "rms"


def _is_per_head(block: nn.Module, name: str, norm: nn.Module) -> bool:
    """Say whether the norm lies in an attention module and is as wide as one of its heads."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        parent = block.get_submodule(".".join(parts[:depth]))
        widths = [getattr(parent, key, None) for key in HEAD_WIDTHS]
        if norm.weight.numel() in widths:
            return True
    return False
