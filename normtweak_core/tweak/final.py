"""Final tune: train all norms of the finished quantized model against the float model's logits.

Where asked for, the scales of its linears as well; their codes stay.

Source: the "post" stage of SandwichQuant: AdamW without weight
decay, batch 1, gradient clipping at 1.0, everything but the norms frozen. Where we differ: only
the divergence from the float logits is minimized (no cross-entropy term: the text may be
generated), the learning rate falls to zero, and held-out windows decide whether it is kept. The
float model is walked once before: only the quantized model is in memory.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from normtweak_core.activations.rounding import put_linear
from normtweak_core.errors import NonFiniteError
from normtweak_core.evaluate.predictions import Walked, walked
from normtweak_core.finetune.scales import ScaleLinear
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.streams import num_training_windows
from normtweak_core.randomness import generator
from normtweak_core.training.objective import divergence
from normtweak_core.tweak.config import FinalTuneConfig
from normtweak_core.tweak.report import FinalTuneReport
from normtweak_core.tweak.tweak import WithMasters, norm_parameters
from normtweak_core.vision.windows import ImageWindows, model_inputs, of_text

GRADIENT_CLIP = 1.0
Progress = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True)
class TuningWindows:
    """Calibration windows; the last ones decide, the others train."""

    input_ids: Int64[Tensor, "samples seq"] | ImageWindows
    num_training: int

    @classmethod
    def of(cls, input_ids: Int64[Tensor, "samples seq"] | ImageWindows) -> "TuningWindows":
        """Return the windows, of which those train that also serve the Hessians."""
        return cls(input_ids, num_training_windows(len(input_ids)))


def walked_targets(model: StreamedModel, windows: TuningWindows) -> Walked:
    """Return what the float model says of each window, a batch each, once and for all steps.

    Kept are its last hidden states, in the dtype of the model: logits are as many times larger as
    the vocabulary is larger than the hidden width, and its head makes them of the states again.

    Raises:
        NonFiniteError: A weight is NaN or infinite.
    """
    expected = walked(model, windows.input_ids, batch_size=1)
    model.release()
    return expected


def final_tune(
    quantized: nn.Module,
    expected: Walked,
    windows: TuningWindows,
    config: FinalTuneConfig,
    masters: dict[str, Tensor],
    export_dtype: torch.dtype,
    seed: int,
    progress: Progress = lambda step, steps, loss: None,
) -> tuple[FinalTuneReport, dict[str, Tensor]]:
    """Return the report and, if accepted, float32 values of everything that was trained.

    Trained are norms and, of linears that `put_scales` has made, factors of scales. Of a model that
    has neither nothing is trained, and the report says so.

    Args:
        quantized: Causal LM whose linears hold quantized weights and whose norms are rounded to
            the export dtype. What is trained is changed during the call and restored at the end.
        expected: What `walked_targets` has returned for the same windows.
        windows: Calibration windows without padding.
        config: Steps and learning rates.
        masters: Float32 masters of norms that were tweaked before; others start at their value.
        export_dtype: The held-out divergence is measured with gains rounded to it.
        seed: Seed of the order in which windows are drawn.
        progress: Called after each step.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
    """
    norms, factors = norm_parameters(quantized), scale_factors(quantized)
    parameters = norms | factors
    original = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    start = {
        name: _float32(masters.get(name, parameter.detach()), parameter).requires_grad_(True)
        for name, parameter in parameters.items()
    }
    before = _held_out_divergence(quantized, expected, windows)
    if not parameters:
        report = FinalTuneReport(
            held_out_before=before, held_out_after=before, accepted=False, trained=False
        )
        return report, {}
    trained = _train(quantized, expected, windows, config, start, seed, progress)
    with torch.no_grad():
        for name, parameter in parameters.items():
            # Scales are rounded where they are multiplied with their factors.
            parameter.copy_(trained[name].to(export_dtype) if name in norms else trained[name])
        after = _held_out_divergence(quantized, expected, windows)
        for name, parameter in parameters.items():
            parameter.copy_(original[name])
    report = FinalTuneReport(held_out_before=before, held_out_after=after, accepted=after < before)
    return report, trained if report.accepted else {}


def scale_factors(quantized: nn.Module) -> dict[str, nn.Parameter]:
    """Return the factors of all scales that are trained, by full name."""
    return {
        f"{name}.factors": layer.factors
        for name, layer in quantized.named_modules()
        if isinstance(layer, ScaleLinear)
    }


@torch.no_grad()
def put_tuned(
    quantized: nn.Module, trained: Mapping[str, Tensor], export_dtype: torch.dtype
) -> tuple[dict[str, Float[Tensor, " hidden"]], dict[str, Float[Tensor, "out groups"]]]:
    """Give a model what `final_tune` has kept; its linears are plain ones again.

    Returns:
        The float32 masters of the norms, and the new scales by their linear; nothing where nothing
        was kept.
    """
    factors = scale_factors(quantized)
    norms = {name: value for name, value in trained.items() if name not in factors}
    for name, master in norms.items():
        quantized.get_parameter(name).copy_(master.to(export_dtype))
    scales = {}
    for name, parameter in factors.items():
        linear = name.rpartition(".")[0]
        learning = quantized.get_submodule(linear)
        if name in trained:
            parameter.copy_(trained[name])
            scales[linear] = learning.scales()
        put_linear(quantized, linear, learning.dense())
    return norms, scales


def _float32(value: Tensor, like: Tensor) -> Tensor:
    """Return a copy in float32 where another tensor lies."""
    return value.to(like.device, torch.float32, copy=True)


def _train(
    quantized: nn.Module,
    expected: Walked,
    windows: TuningWindows,
    config: FinalTuneConfig,
    masters: dict[str, Tensor],
    seed: int,
    progress: Progress,
) -> dict[str, Tensor]:
    tuned = WithMasters(quantized, masters)
    of_scales = scale_factors(quantized)
    groups = [
        {"params": [one], "peak": config.scale_lr if name in of_scales else config.lr}
        for name, one in masters.items()
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.0)
    draws = generator(seed, "final-tune")
    order: list[int] = []
    device = next(quantized.parameters()).device
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        order = order or torch.randperm(windows.num_training, generator=draws).tolist()
        chosen = order.pop()
        window = windows.input_ids[chosen : chosen + 1].to(device)
        target = of_text(expected.logits(chosen), window)
        with torch.enable_grad():
            logits = tuned(**model_inputs(window), use_cache=False).logits
            loss = divergence(target, of_text(logits, window))
            if not torch.isfinite(loss):
                raise NonFiniteError(
                    f"the final tune's loss must be finite; found {loss.item()} at step {step}: "
                    f"lower final_tune.lr (now {config.lr:g})"
                )
            optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(masters.values(), GRADIENT_CLIP)
        optimizer.step()
        progress(step + 1, config.steps, loss.item())
    return {name: master.detach() for name, master in masters.items()}


@torch.no_grad()
def _held_out_divergence(quantized: nn.Module, expected: Walked, windows: TuningWindows) -> float:
    device = next(quantized.parameters()).device
    held_out = range(windows.num_training, len(windows.input_ids))
    total = 0.0
    for number in held_out:
        window = windows.input_ids[number : number + 1].to(device)
        logits = quantized(**model_inputs(window), use_cache=False).logits
        target = of_text(expected.logits(number), window)
        total += divergence(target, of_text(logits, window)).item()
    return total / len(held_out)
