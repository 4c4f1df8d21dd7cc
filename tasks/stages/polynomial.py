"""The stages of the polynomial study: the float training, and one stage for every cell."""

import functools
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefect import task

from normtweak_core.polynomial.config import (
    Cell,
    FloatTrainingConfig,
    GridConfig,
    NetworkConfig,
    SamplesConfig,
    width_name,
)
from tasks.engine import events
from tasks.engine.artifacts import FOLDER, NOT_CONTENT, ArtifactRef, Result, publish, publish_json
from tasks.engine.caching import stage_key
from tasks.engine.environment import state_root
from tasks.engine.progress import Progress
from tasks.models.job import STAGE

if TYPE_CHECKING:
    from normtweak_core.polynomial.study import Outcome, Setting

log = logging.getLogger(__name__)

SOURCES = [__name__, "normtweak_core.polynomial.study"]
KIND = "polynomial"  # folder of what the stages publish
CHECKPOINTS = "polynomial-checkpoints"  # `normtweak clean` removes what is left there


class PolynomialResult(Result, frozen=True):
    """A trained network, and what its training was like."""

    network: ArtifactRef  # weights as inference multiplies with them, and biases
    report: ArtifactRef
    seconds: Annotated[float, NOT_CONTENT]  # of the run that finished it


@dataclass(frozen=True)
class PolynomialJob:
    """What all stages of a study share; samples are made when a stage first needs them."""

    samples: SamplesConfig
    network: NetworkConfig
    seed: int
    evaluations: int
    device: str

    @functools.cached_property
    def setting(self) -> "Setting":
        """Samples on the device, with network and seed; imports torch."""
        from normtweak_core.polynomial.study import make_setting

        log.info("making %d samples", self.samples.train + self.samples.test)
        return make_setting(self.samples, self.network, self.seed, self.evaluations, self.device)

    def key(self, name: str, parents: list[str], inputs: dict[str, Any]) -> str:
        """Return the cache key of a stage."""
        shared = {
            "samples": self.samples,
            "network": self.network,
            "seed": self.seed,
            "evaluations": self.evaluations,
        }
        return stage_key(
            name,
            parents=parents,
            shared=shared,
            inputs=inputs,
            sources=SOURCES,
            device=self.device,
            threads=int(os.environ["OMP_NUM_THREADS"]),
        )


def float_key(job: PolynomialJob, config: FloatTrainingConfig) -> str:
    """Return the key of the float training."""
    return job.key("polynomial-float", [], {"training": config})


def cell_key(job: PolynomialJob, cell: Cell, grid: GridConfig, pretrained: PolynomialResult) -> str:
    """Return the key of a cell; of the grid only length and batch count."""
    parents = [pretrained.network.sha256] if cell.start == "pretrained" else []
    inputs = {"cell": cell, "epochs": grid.epochs, "batch": grid.batch}
    return job.key("polynomial-cell", parents, inputs)


def checkpoint_folder(key: str) -> Path:
    """Return where the training of a stage keeps its checkpoints until its record is stored."""
    return state_root() / FOLDER / CHECKPOINTS / key


def cell_name(cell: Cell) -> str:
    """Return what people call a cell."""
    rate = f"lr {cell.lr:g}" if cell.rank is None else f"LoRA of rank {cell.rank}"
    return f"{width_name(cell.bits)}, {cell.start}, {rate}"


@task(task_run_name="polynomial-float", **STAGE)
def float_stage(key: str, config: FloatTrainingConfig, job: Any, progress: Any) -> PolynomialResult:
    """Return the float network; a training that was stopped goes on from its last checkpoint.

    Raises:
        NonFiniteError: The test loss became NaN or infinite.
    """
    from normtweak_core.polynomial.study import train_float

    return _run(
        key,
        progress,
        "float training",
        functools.partial(train_float, job.setting, config),
    )


@task(task_run_name="polynomial-cell", **STAGE)
def cell_stage(
    key: str, cell: Cell, grid: GridConfig, job: Any, pretrained: Any, progress: Any
) -> PolynomialResult:
    """Return the quantized network of a cell; a stopped one goes on from its last checkpoint.

    Raises:
        NonFiniteError: The test loss became NaN or infinite.
    """
    from safetensors.torch import load_file

    from normtweak_core.polynomial.study import train_cell

    begins = cell.start == "pretrained"
    weights = load_file(state_root() / pretrained.network.path) if begins else None
    return _run(
        key,
        progress,
        cell_name(cell),
        functools.partial(train_cell, job.setting, cell, grid, weights),
    )


def _run(
    key: str, progress: Progress, name: str, work: Callable[..., "Outcome"]
) -> PolynomialResult:
    from safetensors.torch import save_file

    from normtweak_core.polynomial.training import SAVE_SECONDS, Checkpoints

    began = time.monotonic()
    events.record("polynomial", key=key, part="begin")
    with progress.stage(name, "steps", "training") as advance:
        outcome = work(Checkpoints(checkpoint_folder(key), key, SAVE_SECONDS), advance)
    report = {
        "curve": outcome.curve,
        "test_loss": outcome.curve[-1][1],
        "examples_before": outcome.examples_before.tolist(),
        "examples_after": outcome.examples_after.tolist(),
    }
    tensors = {name: tensor.contiguous() for name, tensor in sorted(outcome.state.items())}
    return PolynomialResult(
        network=publish(
            KIND, key, lambda path: save_file(tensors, path, {"format": "pt"}), "safetensors"
        ),
        report=publish_json(KIND, key, report),
        seconds=time.monotonic() - began,
    )
