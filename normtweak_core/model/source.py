"""From ``model.source`` and ``model.device`` of a recipe to a folder and a device; no torch."""

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from normtweak_core.distributed.config import MOST, Devices
from normtweak_core.errors import InputError
from normtweak_core.lazy import lazy
from normtweak_core.model.architecture import (
    check_decoder,
    check_experts,
    check_model_folder,
    model_context,
    read_config,
)
from normtweak_core.model.checkpoint import stored_dtype, stored_names, weight_files
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.hub import fetch_from_hub, is_hub_id
from normtweak_core.paths import given_path
from normtweak_core.reference.architectures import REFERENCE_NAMES

torch = lazy("torch")

__all__ = [
    "ModelFolder",
    "check_model_folder",
    "model_context",
    "num_processes",
    "reference_folder",
    "resolve_device",
    "resolve_source",
    "with_dtype",
]

REFERENCE_PREFIX = "reference:"


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine, as ``save_pretrained`` writes it."""

    path: Path
    name: str  # what the recipe called it
    revision: str | None  # the hub commit; None for a folder


def resolve_source(config: ModelConfig) -> ModelFolder:
    """Return the folder of the model that a recipe names, fetched first if it is a hub id.

    A folder wins over a hub id of the same spelling. Nothing but a hub id reaches the network.

    Raises:
        InputError: There is no such model, it has no safetensors weights, it is no dense
            decoder (see `check_decoder`), or a revision is asked of something that has none.
    """
    source = config.source
    if source.startswith(REFERENCE_PREFIX):
        _refuse_revision(config)
        return _local(reference_folder(source.removeprefix(REFERENCE_PREFIX)), source)
    path = given_path(source, "model.source")
    if path.exists():
        _refuse_revision(config)
        return _local(path, source)
    if is_hub_id(source):
        snapshot = fetch_from_hub(source, config.revision)
        return ModelFolder(snapshot, source, snapshot.name)
    raise InputError(
        "must be a folder, a hub id such as owner/name, or reference:"
        f"{' | reference:'.join(REFERENCE_NAMES)}",
        key="model.source",
        found=f"no folder is called {source!r}",
        remedy="check the path",
    )


def with_dtype(config: ModelConfig, folder: Path) -> ModelConfig:
    """Return the section of a model with the arithmetic that ``dtype: auto`` stands for.

    Weights that are stored in float64 are computed with in float32.

    Raises:
        InputError: The weight files are damaged.
    """
    if config.dtype != "auto":
        return config
    stored = stored_dtype(folder)
    found = "float32" if stored == "float64" else stored
    return config.model_copy(update={"dtype": found})


def reference_folder(name: str) -> Path:
    """Return where a reference model ships with this package.

    Raises:
        InputError: No reference model has that name, or this installation lacks its weights.
    """
    if name not in REFERENCE_NAMES:
        raise InputError(
            f"a reference model must be one of {', '.join(REFERENCE_NAMES)}; got {name!r}."
        )
    folder = Path(__file__).parents[1] / "reference" / "models" / name
    if not (folder / "config.json").is_file():
        raise InputError(
            f"reference:{name} must be part of this installation; its files are absent. "
            f"Install the package again, or train it: normtweak reference train {name}."
        )
    return folder


def resolve_device(device: str) -> str:
    """Return the device to compute on: ``cpu`` or ``cuda:N``.

    torch is imported only where the installed build could use a GPU.

    Raises:
        InputError: The name is not one of auto, cpu, cuda, cuda:N, or there is no such device.
    """
    wanted = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device, re.ASCII)
    if wanted is None:
        raise InputError(
            "must be auto, cpu, cuda or cuda:N", key="model.device", found=f"found {device!r}"
        )
    if device == "cpu":
        return device
    count = _num_cuda_devices()
    if device == "auto":
        return "cuda:0" if count else "cpu"
    number = int(wanted[1] or 0)
    if number >= count:
        raise InputError(
            "must be a device that torch sees",
            key="model.device",
            found=f"found {device}, and torch sees {count} CUDA devices here",
            remedy="set auto or cpu",
        )
    return f"cuda:{number}"


def num_processes(devices: Devices, device: str, wanted: str) -> int:
    """Return how many processes share the windows of a block.

    Args:
        devices: What the recipe says.
        device: That the first of them computes on: ``cpu`` or ``cuda:N``.
        wanted: What the recipe says of the device.

    Raises:
        InputError: There are not as many GPUs.
    """
    if device == "cpu":
        return 1 if devices == "auto" else devices
    count = _num_cuda_devices() - int(device.partition(":")[2])
    if devices == "auto":
        return min(MOST, count) if wanted in ("auto", "cuda") else 1
    if devices > count:
        raise InputError(
            "must be at most the number of GPUs from the first one on",
            key="devices",
            found=f"found {devices}, and torch sees {count} from {device} on",
            remedy="lower it, or take auto",
        )
    return devices


def _num_cuda_devices() -> int:
    """Return how many CUDA devices torch sees; a CPU build of torch is not asked."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _local(path: Path, name: str) -> ModelFolder:
    """Return a folder that holds what a model needs, or raise InputError."""
    if not path.is_dir():
        raise InputError(
            "must be a folder",
            key="model.source",
            found=f"{path} is a file",
            remedy="give the folder it lies in",
        )
    config = read_config(path)
    check_decoder(config, name)
    check_experts(config, name, stored_names(path))
    weight_files(path)
    return ModelFolder(path.resolve(), name, None)


def _refuse_revision(config: ModelConfig) -> None:
    if config.revision is not None:
        raise InputError(
            "is for hub ids",
            key="model.revision",
            found=f"{config.source} is none",
            remedy="leave the revision out",
        )
