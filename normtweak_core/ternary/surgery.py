"""Give every linear of the blocks an RMSNorm and a latent weight, without changing the function.

RMSNorm deletes the length of what a linear reads. Where a block norm feeds a linear, its gain
moves into the extra norm and becomes one (a LayerNorm's bias folds into the linear's bias): the
second norm then finds a root mean square of one and changes nothing. Where no norm feeds it (the
output projections of attention and MLP), the extra norm's gain starts at the root mean square seen
on calibration text, and the norm itself can be blended in.

Source: arXiv 2505.08823 inserts the norms; how to keep the function is ours, as
the paper's artefacts do not say.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from pydantic import BaseModel
from torch import Tensor, nn

from normtweak_core.errors import InputError
from normtweak_core.model.structure import (
    Norm,
    find_blocks,
    find_linears,
    find_norms,
    linear_weight,
)
from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.linear import SharedInput, TrainedLinear

NORMS = "extra_norms"  # name of their list inside a block


class SharedBy(BaseModel, frozen=True):
    """Linears of one block that read the same tensor."""

    linears: list[str]  # names inside the block, in the order they are called
    norm: str | None  # the block norm they read, if its gain can move
    level: float  # mean over tokens of the tensor's root mean square


class SurgeryPlan(BaseModel, frozen=True):
    """What is inserted where; follows from the model and a few windows of text."""

    blocks: list[list[SharedBy]]
    eps: float  # of the extra norms: that of the model's own
    unused: list[str]  # linears that no forward pass reaches; they stay float

    def num_linears(self) -> int:
        """Return how many linears become ternary."""
        return sum(len(group.linears) for block in self.blocks for group in block)


@dataclass
class _Seen:
    """What one forward pass shows of one block."""

    groups: list[tuple[Tensor, list[str]]] = field(default_factory=list)
    norm_outputs: list[tuple[Tensor, str]] = field(default_factory=list)


@torch.no_grad()
def plan_surgery(model: nn.Module, windows: Int64[Tensor, "samples seq"]) -> SurgeryPlan:
    """Return which linears share an input, which norm feeds them, and how large the input is.

    Args:
        model: Float causal LM in eval mode.
        windows: A few windows of calibration text, one batch.

    Raises:
        InputError: A linear is a Conv1D, which the trained linear does not stand for.
    """
    blocks = find_blocks(model).modules
    seen, handles = [_Seen() for _ in blocks], []
    for block, record in zip(blocks, seen, strict=True):
        for name, module in find_linears(block).items():
            if not isinstance(module, nn.Linear):
                raise InputError(
                    "ternary training needs nn.Linear layers; "
                    f"{type(block).__name__}.{name} is a {type(module).__name__}: choose a model "
                    "of another family"
                )
            handles.append(module.register_forward_pre_hook(_reader(record, name)))
        for name, norm in find_norms(block).items():
            if not norm.per_head:
                hook = _writer(record, name)
                handles.append(norm.module.register_forward_hook(hook, with_kwargs=True))
    try:
        model(windows.to(next(model.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    unused = [
        f"{index}.{name}"
        for index, (block, record) in enumerate(zip(blocks, seen, strict=True))
        for name in find_linears(block)
        if all(name not in names for _, names in record.groups)
    ]
    plan = [_plan_block(block, record) for block, record in zip(blocks, seen, strict=True)]
    return SurgeryPlan(blocks=plan, eps=_norm_eps(blocks[0]), unused=unused)


def _reader(record: _Seen, name: str) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        for tensor, names in record.groups:
            if tensor is args[0]:
                names.append(name)
                return
        record.groups.append((args[0], [name]))

    return note


def _writer(record: _Seen, name: str) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        # The output of one that also takes a gate has not the root mean square of its gain.
        if sum(isinstance(value, Tensor) for value in (*args, *kwargs.values())) == 1:
            record.norm_outputs.append((output, name))

    return note


def _plan_block(block: nn.Module, seen: _Seen) -> list[SharedBy]:
    norms, linears, plan = find_norms(block), find_linears(block), []
    for tensor, names in seen.groups:
        source = next((name for output, name in seen.norm_outputs if output is tensor), None)
        if source is not None and not _can_move(norms[source], [linears[n] for n in names]):
            source = None
        level = tensor.float().square().mean(dim=-1).sqrt().mean().item()
        plan.append(SharedBy(linears=names, norm=source, level=level))
    return plan


def _can_move(norm: Norm, linears: list[nn.Module]) -> bool:
    """Say whether the linears can take over gain and bias: a bias needs a bias to go to."""
    bias = getattr(norm.module, "bias", None)
    return bias is None or not bias.any() or all(linear.bias is not None for linear in linears)


def _norm_eps(block: nn.Module) -> float:
    for norm in find_norms(block).values():
        for key in ("variance_epsilon", "eps"):
            if isinstance(getattr(norm.module, key, None), float):
                return getattr(norm.module, key)
    return 1e-6  # of transformers' BitNetQuantConfig


@torch.no_grad()
def apply_surgery(model: nn.Module, plan: SurgeryPlan, config: TernaryConfig) -> None:
    """Replace the linears of the blocks in place; everything becomes trainable float32.

    With lambda 0 and the norms ramped out the model computes what it computed before.
    """
    model.float().requires_grad_(True)
    blocks = find_blocks(model).modules
    for name in plan.unused:
        index, _, linear = name.partition(".")
        blocks[int(index)].get_submodule(linear).requires_grad_(False)
    for block, groups in zip(blocks, plan.blocks, strict=True):
        norms = nn.ModuleList()
        for group in groups:
            norms.append(_replace_group(block, group, plan.eps, config))
        block.add_module(NORMS, norms)
        block.register_forward_hook(lambda block, _, __: forget_inputs(block))


def forget_inputs(block: nn.Module) -> None:
    """Let go of the tensors that the linears of a block have read, see `SharedInput`."""
    for shared in getattr(block, NORMS):
        shared.forget()


def _replace_group(
    block: nn.Module, group: SharedBy, eps: float, config: TernaryConfig
) -> SharedInput:
    linears = {name: block.get_submodule(name) for name in group.linears}
    first = next(iter(linears.values()))
    width, has_norm = linear_weight(first).shape[1], config.norm == "rms"
    gain, level = torch.ones(width, device=first.weight.device), group.level
    biases = {name: linear.bias for name, linear in linears.items()}
    if has_norm and group.norm is not None:
        norm = find_norms(block)[group.norm]
        gain, shift = _take_gain(norm)
        level = 1.0
        # Its gain lives on in the extra norms; a second one would say the same twice, and formats
        # that fold both norms into one need it constant.
        norm.module.requires_grad_(not config.affine)
        if shift is not None:
            for name, linear in linears.items():
                bias = biases[name]
                biases[name] = (0 if bias is None else bias) + linear.weight @ shift
    elif has_norm:
        gain = gain * level
    in_norm = has_norm and config.affine
    own = in_norm and not config.share_gains
    shared = SharedInput(width, gain.clone() if in_norm and not own else None, eps, level, has_norm)
    shared.activation_bits = config.activation_bits
    for name, linear in linears.items():
        # Without a gain to hold it, the factor of each input column moves into the weight.
        weight = linear.weight if in_norm or not has_norm else linear.weight * gain
        trained = TrainedLinear(weight.clone(), _cloned(biases[name]), shared, own)
        if own:
            trained.gain.copy_(gain)
        block.set_submodule(name, trained)
    return shared


def _cloned(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().clone()


def _take_gain(norm: Norm) -> tuple[Tensor, Tensor | None]:
    """Return gain and bias of a block norm, which is left with gain one and bias zero."""
    plus_one = norm.kind.endswith("plus_one")
    weight = norm.module.weight
    gain = weight.detach().float() + (1 if plus_one else 0)
    weight.fill_(0 if plus_one else 1)
    bias = getattr(norm.module, "bias", None)
    if bias is None:
        return gain, None
    shift = bias.detach().float().clone()
    bias.zero_()
    return gain, shift if shift.any() else None


def trained_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model after surgery.

    They are found by the norms' list; ``find_blocks`` looks for float linears.
    """
    return [module for module in model.modules() if hasattr(module, NORMS)]


def trained_linears(block: nn.Module) -> dict[str, TrainedLinear]:
    """Return the trained linears of a block by their name inside it."""
    return {n: m for n, m in block.named_modules() if isinstance(m, TrainedLinear)}


def set_lambdas(model: nn.Module, lambdas: list[float], ramp_norm: bool) -> None:
    """Set how far each block is quantized, first block first.

    Args:
        model: After surgery.
        lambdas: From 0 to 1, one a block.
        ramp_norm: Blend in the extra norms by the same lambda; else they are there at once.
    """
    for block, lam in zip(trained_blocks(model), lambdas, strict=True):
        for linear in trained_linears(block).values():
            linear.lam = lam
        for shared in getattr(block, NORMS):
            shared.lam, shared.ramp = lam, lam if ramp_norm else 1.0
