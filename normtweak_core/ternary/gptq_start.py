"""Where a ternary training starts: latent weights that round to the codes that GPTQ finds.

Rounded to nearest, a float model forgets its language, and training spends most of its tokens on
bringing that back. GPTQ undoes with each column what rounding the columns before it did, and with
each linear what the linears before it did; a training from there has only the rest to do.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.gptq import gptq
from normtweak_core.quantization.grid import GridSpec
from normtweak_core.quantization.hessian import InputStatistics, corrected_weight
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.streams import Streams, micro_batches, run_stream
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.ternary.linear import TrainedLinear
from normtweak_core.ternary.quantizers import absmean_scale
from normtweak_core.ternary.surgery import (
    SharedBy,
    SurgeryPlan,
    forget_inputs,
    set_lambdas,
    trained_blocks,
    trained_linears,
)

MARGIN = 0.02  # of a scale: between a latent weight and the border of its cell
SOLVE = QuantizationConfig()  # damping, exponents, sweeps, propagation: as every quantization has


class _ReachedError(Exception):
    """A block has come to the linear whose input is wanted."""


class GptqStart:
    """Gives a model the latent weights that a training starts from, block by block, in place.

    Linear by linear, each with those before it already ternary: its weight is corrected for the
    error that its input has by then (the extra norm and the rounding of activations included), and
    GPTQ rounds it to a ternary grid with one scale, which is all that the BitNet format holds.

    Source: GPTQ (arXiv 2210.17323) after the correction of arXiv 2504.09629; that a training from a
        post-training grid needs far fewer tokens, CAT-Q (arXiv 2606.26650).
    """

    def __init__(
        self,
        model: nn.Module,
        plan: SurgeryPlan,
        folder: Path,
        windows: Int64[Tensor, "samples seq"],
        device: str,
    ):
        """Stand in front of the first block.

        Args:
            model: After surgery.
            plan: Of that surgery.
            folder: The float model.
            windows: Calibration text.
            device: Where to compute, as torch names it.
        """
        self._walk = BlockWalk(StreamedModel(folder, torch.float32, device), windows)
        self._streams, self._plan, self._blocks = self._walk.start(), plan, trained_blocks(model)
        self.done = 0  # blocks
        set_lambdas(model, [1.0] * len(self._blocks), ramp_norm=False)

    @torch.no_grad()
    def solve(self) -> dict[str, Float[Tensor, "out in"]]:
        """Return the latent weights of the next block, by their linears' names in it.

        Raises:
            HessianError: A Hessian cannot be factorized.
            NonFiniteError: Activations are not finite.
        """
        block, run = self._blocks[self.done], self._walk.runner(self.done)
        wanted, streams = self._walk.load(self.done), self._streams
        for group in self._plan.blocks[self.done]:
            _start_group(group, wanted, block, streams, run)
        self._pass_on(wanted)
        return {name: one.weight.detach() for name, one in trained_linears(block).items()}

    @torch.no_grad()
    def put(self, latents: Mapping[str, Float[Tensor, "out in"]]) -> None:
        """Give the next block the latent weights that `solve` has found for it before."""
        put_latents(self._blocks[self.done], latents)
        self._pass_on(self._walk.load(self.done))

    def _pass_on(self, wanted: nn.Module) -> None:
        run, block, streams = self._walk.runner(self.done), self._blocks[self.done], self._streams
        x_f = run_stream(wanted, streams.x_f, run)
        self._streams = Streams(x_f, run_stream(block, streams.x_q, run))
        self.done += 1


@torch.no_grad()
def put_latents(block: nn.Module, latents: Mapping[str, Float[Tensor, "out in"]]) -> None:
    """Set the latent weights of a block after surgery, by their linears' names in it."""
    for name, linear in trained_linears(block).items():
        linear.weight.copy_(latents[name])


def mean_scale(model: nn.Module) -> float:
    """Return the mean scale of the ternary linears of a model after surgery."""
    scales = [
        absmean_scale(linear.weight).item()
        for block in trained_blocks(model)
        for linear in trained_linears(block).values()
    ]
    return sum(scales) / len(scales)


def _start_group(
    group: SharedBy, wanted: nn.Module, block: nn.Module, streams: Streams, run: RunBlock
) -> None:
    """Set the latent weights of linears that read one tensor."""
    floats = {name: wanted.get_submodule(name) for name in group.linears}
    linears = {name: block.get_submodule(name) for name in group.linears}
    first = linears[group.linears[0]]
    statistics = InputStatistics(first.in_features, first.weight.device)
    for part in micro_batches(streams.x_f):
        outputs = _outputs(floats, wanted, streams.x_f[part], run)
        read = _input(first, block, streams.x_q[part], run)
        # What surgery has moved into a bias is no work of the weight.
        missing = [
            outputs[name] - nn.functional.linear(read, linear.weight, linear.bias)
            for name, linear in linears.items()
        ]
        statistics.add_error(torch.cat(missing, dim=-1), statistics.add(read))
    weight = torch.cat([linear.weight for linear in linears.values()])
    H, propagation = statistics.hessian(), SOLVE.propagation
    correction = corrected_weight(
        weight, H, statistics.cross(), propagation.alpha, propagation.ridge
    )
    rows = [linear.out_features for linear in linears.values()]
    for linear, W in zip(linears.values(), correction.weight.split(rows), strict=True):
        linear.weight.copy_(ternary_latent(W, H))


def _outputs(
    linears: dict[str, nn.Module], block: nn.Module, hidden: Tensor, run: RunBlock
) -> dict[str, Tensor]:
    """Return what each float linear of a block gives for some windows."""
    found: dict[str, Tensor] = {}
    with _hooked(
        linear.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
        for name, linear in linears.items()
    ):
        run(block, hidden)
    return found


def _input(linear: TrainedLinear, block: nn.Module, hidden: Tensor, run: RunBlock) -> Tensor:
    """Return what a linear multiplies with, normalized and rounded, for some windows."""
    found: list[Tensor] = []

    def reached(linear: TrainedLinear, args: tuple[Tensor, ...]) -> None:
        found.append(linear.shared(args[0], linear.gain))
        raise _ReachedError

    with _hooked([linear.register_forward_pre_hook(reached)]):
        try:
            run(block, hidden)
        except _ReachedError:
            forget_inputs(block)
    return found[0]


@contextmanager
def _hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()


def ternary_latent(
    W: Float[Tensor, "out in"], H: Float[Tensor, "in in"]
) -> Float[Tensor, "out in"]:
    """Return weights that `absmean` rounds to the codes and the scale that GPTQ finds for ``W``.

    Half way between ``W``, as far as the cell of its code allows, and the level: there so many
    weights lie beside a border that the first steps flip thousands at once, here none knows which
    way it would rather have gone. Those of the outer codes are then stretched, together, until the
    mean magnitude of all is the scale.

    Args:
        W: Corrected weight.
        H: Hessian of its input.
    """
    spec = GridSpec(2, True, True, torch.float32, "ternary", one_scale=True)
    solved = gptq(
        W,
        H,
        None,
        spec,
        act_order=SOLVE.act_order,
        percdamp=SOLVE.percdamp,
        exponents=SOLVE.exponents,
        sweeps=SOLVE.sweeps,
    ).weight
    codes, scale = solved.codes.float() - solved.zeros.float(), solved.scales[0, 0]
    outer, border = codes != 0, 0.5 + MARGIN
    if not outer.any():
        return torch.zeros_like(W)
    own = torch.where(
        outer,
        codes * (codes * W / scale).clamp(min=border),
        (W / scale).clamp(-0.5 + MARGIN, 0.5 - MARGIN),
    )
    ratio = (own + codes * (codes.numel() / outer.sum())) / 2
    beyond = ratio[outer].abs() - border
    rest = codes.numel() - ratio[~outer].abs().sum() - border * outer.sum()
    ratio[outer] = codes[outer] * (border + beyond * (rest / beyond.sum()))
    return ratio * scale
