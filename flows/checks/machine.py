"""What a run will need, predicted from the recipe and the headers of the weight files.

Disk is counted exactly where formats are ours (streams, block results) and rounded up elsewhere;
memory and time are estimates for `normtweak plan`, nothing is refused because of them.
"""

import math
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.recipes.quantize import Recipe
from normtweak_core.errors import InputError
from normtweak_core.export.formats.checks import LinearShape, linear_shapes
from normtweak_core.export.gguf.grid_checks import predicted_bytes
from normtweak_core.lazy import lazy
from normtweak_core.model.architecture import read_config
from normtweak_core.model.checkpoint import stored_tensors
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.layout import block_list
from normtweak_core.model.source import num_processes, resolve_device, with_dtype
from normtweak_core.quantization.config import MixedBits

cache = lazy("normtweak_core.calibration.cache")
numpy = lazy("numpy")
skeletons = lazy("normtweak_core.model.skeleton")
torch = lazy("torch")

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model", "dim")
FIXED_DISK = 32 << 20  # databases, logs, plots, verification probes
FIXED_OF_A_PROCESS = 500 << 20  # measured, of one that computes with others
# Stages in which a whole model is in memory; all others take a block at a time.
WHOLE = ("data", "surgery", "final tune", "training", "evaluate tasks")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, from its config and the headers of its weight files."""

    num_blocks: int
    hidden: int
    vocabulary: int
    parameters: int
    linears: dict[str, LinearShape]
    dtype: str  # that most weights are stored in

    def element(self, dtype: str) -> int:
        """Return the bytes of a number in the arithmetic of a recipe."""
        return DTYPE_BYTES[self.dtype if dtype == "auto" else dtype]

    @property
    def linear_weights(self) -> int:
        """Weights that are quantized."""
        return sum(s.out_features * s.in_features for s in self.linears.values())

    @property
    def linear_sides(self) -> int:
        """What all linears of the blocks read and write of one token."""
        return sum(one.in_features + one.out_features for one in self.linears.values())

    @property
    def widest_input(self) -> int:
        """Input width of the widest linear."""
        return max(s.in_features for s in self.linears.values())


@dataclass(frozen=True)
class Estimate:
    """Seconds of work by stage, and the speed they were computed with."""

    seconds: dict[str, float]
    multiply_adds_per_second: float


def model_shape(folder: Path) -> ModelShape:
    """Return the sizes of the model in a folder.

    Raises:
        InputError: The weight files are damaged, or hold no blocks with linears.
    """
    tensors = stored_tensors(folder)
    prefix, num_blocks = block_list(tensors)
    linears = linear_shapes(folder)
    if not linears:
        raise InputError(
            f"the model must be a stack of blocks with linear layers; {folder} has none in its "
            f"{num_blocks} blocks: choose a decoder-only transformer"
        )
    config = read_config(folder)
    parts = (config, config.get("text_config") or {})
    found = [part[key] for part in parts for key in HIDDEN_KEYS if isinstance(part.get(key), int)]
    widths = Counter(t.shape[0] for t in tensors.values() if len(t.shape) == 1)
    hidden = found[0] if found else max(widths, key=widths.__getitem__)
    outside = [
        t.shape
        for name, t in tensors.items()
        if len(t.shape) == 2 and hidden in t.shape and not name.startswith(f"{prefix}.")
    ]
    return ModelShape(
        num_blocks=num_blocks,
        hidden=hidden,
        vocabulary=max(math.prod(shape) for shape in outside) // hidden if outside else hidden,
        parameters=sum(math.prod(t.shape) for t in tensors.values()),
        linears=linears,
        dtype=with_dtype(ModelConfig(dtype="auto"), folder).dtype,
    )


def num_groups(shape: ModelShape) -> int:
    """Return how many groups of linears have one input, taken for those of one module and width."""
    return len({(name.rpartition(".")[0], one.in_features) for name, one in shape.linears.items()})


def disk_bytes(recipe: Recipe, shape: ModelShape, length: int) -> dict[str, int]:
    """Return the bytes a run writes at most, by what they are."""
    samples = recipe.calibration.samples
    stream = samples * length * shape.hidden * shape.element(recipe.model.dtype)
    config = recipe.quantization
    groups = sum(
        s.out_features * (s.in_features // (config.group_size or s.in_features))
        for s in shape.linears.values()
    )
    # In a block result a code takes a byte, a scale four, a zero one; the baseline has its own.
    blocks = 2 * (shape.linear_weights + groups * 5)
    float_bytes = 4 if recipe.export.dtype == "float32" else 2
    bits = config.bits.average if isinstance(config.bits, MixedBits) else config.bits
    packed = math.ceil(shape.linear_weights * bits / 8) + groups * (float_bytes + 1)
    export = packed + (shape.parameters - shape.linear_weights) * float_bytes
    beside = {}
    if recipe.export.format == "gguf":
        linears = sum(predicted_bytes(config, shape.linears).values())
        file = linears + (shape.parameters - shape.linear_weights) * float_bytes
        beside = {"GGUF file, and the registry's copy": 2 * file}
    # Each width is tried before.
    trial = len(config.widths) * (shape.linear_weights + groups * 5)
    tried = {"widths on trial": trial} if isinstance(config.bits, MixedBits) else {}
    return tried | {
        "calibration set": samples * length * 8,
        "streams (two boundaries of two streams)": 4 * stream,
        "block results, with those of the baseline": blocks,
        "export, and the registry's copy": 2 * export,
        **beside,
        "databases, logs and reports": FIXED_DISK,
    }


def processes(recipe: Any) -> int:
    """Return how many processes share the windows of a block, or may share a training."""
    wanted = recipe.model.device
    return num_processes(recipe.devices, resolve_device(wanted), wanted)


@dataclass(frozen=True)
class Writing:
    """What writing text takes."""

    at_once: int  # windows
    bytes_each: int

    @property
    def bytes(self) -> int:
        """Cache and logits of all windows that are written at once."""
        return self.at_once * self.bytes_each


def writing(
    folder: Path, dtype: str, device: str, samples: int, length: int, taken: int
) -> Writing:
    """Return how many windows of a generated text the model would write at once, and their memory.

    Args:
        folder: The model's.
        dtype: What it computes in.
        device: Where.
        samples: Windows in all.
        length: Tokens of each.
        taken: Bytes of the model.
    """
    skeleton = skeletons.build_skeleton(folder, getattr(torch, dtype))
    each = cache.window_bytes(skeleton, length)
    return Writing(cache.windows_at_once(each, samples, device, taken=taken), each)


def measured_speed() -> float:
    """Return the multiply-adds per second of a 512 x 512 float32 product on this machine, now."""
    size = 512
    matrix = numpy.ones((size, size), dtype=numpy.float32)
    matrix @ matrix
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        matrix @ matrix
        products += 1
    return products * size**3 / (time.perf_counter() - began)


def time_estimate(work: dict[str, int], speed: float) -> Estimate:
    """Return seconds by stage: multiply-adds, at the share of `speed` such work reaches."""
    reached = 0.35 * speed  # small matrices, norms, attention and copies in between
    seconds = {name: amount / reached for name, amount in work.items() if amount}
    return Estimate(seconds | {"start, export, verify, register": 25.0}, speed)


def existing_folder(path: Path) -> Path:
    """Return the nearest path upwards that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def free_bytes(place: Path) -> int:
    """Return what is free for this user on the disk of an existing path."""
    return shutil.disk_usage(place).free
