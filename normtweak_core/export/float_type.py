"""The float type an export is written in: the first in which a stock reader's arithmetic holds.

Readers open an export in the dtype of its config.json and compute in it: not the weights decide,
but what becomes of the activations. A few windows of calibration text are run through the float
model, a block at a time, in float32 and in each candidate.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from normtweak_core.errors import NonFiniteError
from normtweak_core.export.config import AnyExportConfig
from normtweak_core.export.formats.checks import FloatTypeError
from normtweak_core.export.trace import HEADROOM, Peaks, Trace, too_far, why_not
from normtweak_core.model.architecture import read_config
from normtweak_core.model.half import sum_in_float32
from normtweak_core.model.skeleton import load_config, used_tensors
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears, linear_weight, set_linear_weight
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.grid import round_scale
from normtweak_core.stored import largest_absolute, read_tensor
from normtweak_core.vision.kinds import reads_images

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class FloatTypeChoice:
    """The float type of an export, and those that were passed over for it."""

    dtype: torch.dtype
    refused: dict[str, str] = field(default_factory=dict)  # why, by name, in the order tried
    note: str = ""  # what a person should know of the one that was chosen


@runtime_checkable
class Base(Protocol):
    """What others have quantized, by the names of the float model."""

    def refuses(self, dtype: torch.dtype) -> str | None:
        """Return why a float type does not hold the scales as they are; None where it does."""
        ...

    def streamed(self, source: Path, dtype: torch.dtype, device: str) -> StreamedModel:
        """Return the model with these weights, read block by block."""
        ...


# What goes wrong with a model in a float type, or None. The second argument says how much larger
# than seen activations may get; 0: only what was seen counts.
Trial = Callable[[str, int], str | None]


def choose_float_type(
    config: AnyExportConfig, trial: Trial, first: str | None = None
) -> FloatTypeChoice:
    """Return the first of float16, bfloat16 and float32 that holds a model, or the one asked for.

    Args:
        config: Format and float type asked for.
        trial: Tries the model in a float type.
        first: One that is to be tried before these.

    Raises:
        FloatTypeError: The one asked for does not hold it, or the only one of the format.
    """
    wanted = "float16" if config.format == "gptq" and config.dtype == "auto" else config.dtype
    if wanted != "auto":
        why = trial(wanted, 0)
        if why is not None:
            holds = [name for name in DTYPES if name != wanted and trial(name, 0) is None]
            raise FloatTypeError(wanted, why, holds, config.format)
        return FloatTypeChoice(DTYPES[wanted])
    refused: dict[str, str] = {}
    for name in dict.fromkeys((first or "float16", "float16", "bfloat16")):
        why = trial(name, HEADROOM)
        if why is None:
            return FloatTypeChoice(DTYPES[name], refused)
        refused[name] = why
    return FloatTypeChoice(torch.float32, refused)


def choose_export_dtype(
    config: AnyExportConfig,
    source: Path,
    windows: Int64[Tensor, "rows tokens"],
    quantization: QuantizationConfig | None = None,
    device: str = "cpu",
    base: Base | None = None,
) -> FloatTypeChoice:
    """Return the float type in which stock readers can run what is made of a float model.

    Args:
        config: Format and float type asked for.
        source: Folder of the float model.
        windows: Token ids to run; see `normtweak_core.export.verification.probe.probe_rows`.
        quantization: The grid, whose scales must be numbers of the float type; None: there is none.
        device: Where to compute.
        base: What others have quantized, whose scales must be numbers of the float type and which
            is run in place of the float model.

    Raises:
        FloatTypeError: The float type asked for does not hold the model.
        NonFiniteError: A weight is NaN or infinite, or the model's own logits are.
    """
    trial = FloatModelTrial(source, windows, quantization, device, base)
    # The vision tower stays as it is, bit for bit, and text would not tell what another type does.
    first = own_float_type(source) if reads_images(read_config(source)) else None
    choice = choose_float_type(config, trial, first and str(first).removeprefix("torch."))
    return replace(choice, note=trial.note(choice.dtype))


class FloatModelTrial:
    """Runs a float model block by block in one float type after another."""

    def __init__(
        self,
        source: Path,
        windows: Int64[Tensor, "rows tokens"],
        quantization: QuantizationConfig | None,
        device: str,
        base: Base | None = None,
    ):
        """Note what to run; nothing is read yet."""
        self._base = base
        self._source, self._windows = source, windows
        self._quantization, self._device = quantization, device
        self._own = own_float_type(source)
        self._traces: dict[torch.dtype, Trace] = {}
        self._largest: tuple[float, str] | None = None

    def __call__(self, name: str, spare: int) -> str | None:
        """Return why a float type does not hold the model; None where it does."""
        if self._base is not None and (why := self._base.refuses(DTYPES[name])):
            return why
        if name == "float32":
            return None  # what everything else is measured against
        dtype, limit = DTYPES[name], torch.finfo(DTYPES[name]).max
        largest, where = self._largest_weight()
        if largest > limit:
            return f"{where} reaches {largest:.6g}, beyond {limit:g}"
        reference = self._trace(torch.float32)
        if not reference.logits.isfinite().all():
            raise NonFiniteError(
                "the float model must give finite logits; in float32 they are not. Check its "
                "weights"
            )
        own = dtype is self._own
        return why_not(reference, lambda: self._trace(dtype), dtype, spare, own=own)

    def note(self, dtype: torch.dtype) -> str:
        """Return how far the logits move in the float type that the model is stored in, if far.

        Empty where they do not, and of float types that were not tried.
        """
        if dtype is not self._own or dtype not in self._traces:
            return ""
        far = too_far(self._trace(torch.float32), self._trace(dtype))
        return f"{far}, as those of the float model do, which is stored in it" if far else ""

    def _trace(self, dtype: torch.dtype) -> Trace:
        if dtype not in self._traces:
            self._traces[dtype] = self._run(dtype)
        return self._traces[dtype]

    def _largest_weight(self) -> tuple[float, str]:
        if self._largest is None:
            self._largest = largest_weight(self._source)
        return self._largest

    @torch.inference_mode()
    def _run(self, dtype: torch.dtype) -> Trace:
        """Return what the model does in a float type, its weights rounded as an export's are."""
        peaks, is_reference = Peaks(), dtype is torch.float32
        if self._base is None:
            model = StreamedModel(self._source, dtype, self._device)
        else:
            model = self._base.streamed(self._source, dtype, self._device)
        hidden, calls = model.embed(self._windows)
        peaks.note("embeddings", hidden)
        for index, call in enumerate(calls):
            block, place = model.load_block(index), f"activations of block {index}"
            if is_reference:
                peaks.watch(block, place)
            else:
                sum_in_float32(block)
                if self._quantization is not None and self._base is None:
                    _round_scales(block, self._quantization, dtype)
            hidden = model.run_block(block, hidden, call)
            peaks.check(place, hidden)
        rows = [model.head(row[None])[0].to("cpu", torch.float32) for row in hidden]
        logits = torch.cat(rows)
        peaks.note("logits", logits)
        return Trace(peaks, logits)


def _round_scales(block: nn.Module, config: QuantizationConfig, dtype: torch.dtype) -> None:
    """Let every group of weights suffer what rounding its scale to the float type does to it.

    Only where the scale is below the normal numbers of the type: elsewhere it is rounded by less
    than the grid itself.
    """
    for linear in find_linears(block).values():
        weight = linear_weight(linear).float()
        width = config.group_size or weight.shape[1]
        if weight.shape[1] % width:
            continue  # such a layer cannot be exported, which is told elsewhere
        groups = weight.unflatten(1, (-1, width))
        scales = _scales(groups, config)
        is_small = (scales > 0) & (scales < torch.finfo(dtype).smallest_normal)
        if is_small.any():
            ratio = torch.where(is_small, round_scale(scales, dtype) / scales, 1.0)
            set_linear_weight(linear, (groups * ratio[..., None]).flatten(1))


def _scales(
    groups: Float[Tensor, "out groups width"], config: QuantizationConfig
) -> Float[Tensor, "out groups"]:
    """Return the scale of each group's range."""
    if config.levels != "full":
        return groups.abs().mean(dim=-1)
    low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)
    span = 2 * torch.maximum(-low, high) if config.symmetric else high - low
    return span / (2 ** config.widths[-1] - 1)


def own_float_type(source: Path) -> torch.dtype | None:
    """Return the float type that a model is stored in, in which its author has run it.

    It is what config.json says, as ``from_pretrained`` opens it, or else that of most weights; None
    where that is none of float16, bfloat16 and float32.
    """
    config = load_config(source)
    told = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    if told is None:
        sizes = Counter[str]()
        for stored in used_tensors(source).values():
            sizes[stored.dtype] += stored.end - stored.start
        names = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
        return names.get(sizes.most_common(1)[0][0]) if sizes else None
    return told if told in DTYPES.values() else None


def resolve_export_dtype(config: AnyExportConfig, source: Path) -> torch.dtype:
    """Return the float type that the weights alone suggest; what is written is checked anyway.

    ``auto`` is float16 where every weight fits its range, else bfloat16.

    Raises:
        FloatTypeError: float16 was asked for, or is what gptq needs, and does not hold the weights.
        NonFiniteError: A tensor holds NaN or infinity.
    """
    wanted = "float16" if config.format == "gptq" and config.dtype == "auto" else config.dtype
    if wanted not in ("auto", "float16"):
        return DTYPES[wanted]
    largest, where = largest_weight(source)
    limit = torch.finfo(torch.float16).max
    if largest <= limit:
        return torch.float16
    if wanted == "float16":
        why = f"{where} reaches {largest:.6g}, beyond {limit:g}"
        raise FloatTypeError("float16", why, ["bfloat16", "float32"], config.format)
    return torch.bfloat16


def largest_weight(source: Path) -> tuple[float, str]:
    """Return the largest magnitude among the weights of a model, and the tensor that holds it.

    What old checkpoints hold beside them, such as the -1e9 of a mask, no export takes over.

    Raises:
        NonFiniteError: A tensor holds NaN or infinity.
    """
    largest, where = 0.0, "no weight"
    for name, stored in used_tensors(source).items():
        tensor = read_tensor(stored)
        if tensor.is_floating_point():
            value = largest_absolute(tensor)
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"weights must be finite; {name} is not. Fetch or save the model again."
                )
            if value > largest:
                largest, where = value, name
    return largest, where
