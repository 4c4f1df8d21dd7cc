"""The stages of the polynomial study: the float training, and one stage for every cell."""

import contextlib
import functools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from normtweak_core.lazy import lazy
from normtweak_core.polynomial.config import (
    Cell,
    cells_of,
    width_name,
)
from tasks.engine import events
from tasks.engine.artifacts import (
    FOLDER,
    NOT_CONTENT,
    ArtifactRef,
    Result,
    publish_json,
    publish_tensors,
)
from tasks.engine.environment import state_root
from tasks.engine.progress import Progress
from tasks.engine.stage import Found, stage

if TYPE_CHECKING:
    from normtweak_core.polynomial.study import Outcome, Setting

safetensors = lazy("safetensors.torch")
study = lazy("normtweak_core.polynomial.study")
trainings = lazy("normtweak_core.polynomial.training")

log = logging.getLogger(__name__)

KIND = "polynomial"  # folder of what the stages publish
CHECKPOINTS = "polynomial-checkpoints"  # `normtweak clean` removes what is left there


class PolynomialResult(Result, frozen=True):
    """A trained network, and what its training was like."""

    network: ArtifactRef  # weights as inference multiplies with them, and biases
    report: ArtifactRef
    seconds: Annotated[float, NOT_CONTENT]  # of the run that finished it

    @property
    def identity(self) -> str:
        """The network; what its training was like changes nothing."""
        return self.network.sha256


@dataclass
class PolynomialWork:
    """What all stages of a study share; samples are made when a stage first needs them."""

    recipe: Any
    device: str
    progress: Progress = field(default_factory=Progress, kw_only=True)
    modules: set[str] = field(default_factory=set, kw_only=True)

    @property
    def shared(self) -> dict[str, Any]:
        """What all stages read, as values of a key."""
        recipe = self.recipe
        return {
            "samples": recipe.samples,
            "network": recipe.network,
            "seed": recipe.seed,
            "evaluations": recipe.evaluations,
        }

    @property
    def threads(self) -> int:
        """Threads that share the arithmetic."""
        return int(os.environ["OMP_NUM_THREADS"])

    @functools.cached_property
    def setting(self) -> "Setting":
        """Samples on the device, with network and seed."""
        recipe = self.recipe
        log.info("making %d samples", recipe.samples.train + recipe.samples.test)
        return study.make_setting(
            recipe.samples, recipe.network, recipe.seed, recipe.evaluations, self.device
        )


def checkpoint_folder(key: str) -> Path:
    """Return where the training of a stage keeps its checkpoints until its record is stored."""
    return state_root() / FOLDER / CHECKPOINTS / key


def cell_name(cell: Cell) -> str:
    """Return what people call a cell."""
    rate = f"lr {cell.lr:g}" if cell.rank is None else f"LoRA of rank {cell.rank}"
    return f"{width_name(cell.bits)}, {cell.start}, {rate}"


@contextlib.contextmanager
def _checkpoints_dropped(work: Any, found: Found, keys: Sequence[str]) -> Iterator[None]:
    """Drop the checkpoints of trainings whose record is stored: a kill before costs no step."""
    yield
    for key in keys:
        shutil.rmtree(checkpoint_folder(key), ignore_errors=True)


@stage(
    "float training",
    kind="polynomial-float",
    reads=lambda work, found, part: {"training": work.recipe.float_training},
    around=_checkpoints_dropped,
)
def float_training(key: str, work: PolynomialWork, label: str) -> PolynomialResult:
    """Return the float network; a training that was stopped goes on from its last checkpoint.

    Raises:
        NonFiniteError: The test loss became NaN or infinite.
    """
    config = work.recipe.float_training
    return _run(key, work, label, functools.partial(study.train_float, work.setting, config))


@stage(
    "cell",
    kind="polynomial-cell",
    title="cells",
    needs=("float training",),
    needs_of=lambda cell: ("float training",) if cell.start == "pretrained" else (),
    around=_checkpoints_dropped,
    parts=lambda work: cells_of(work.recipe.grid, work.recipe.lora),
    # Of the grid only length and batch count.
    reads=lambda work, found, cell: {
        "cell": cell,
        "epochs": work.recipe.grid.epochs,
        "batch": work.recipe.grid.batch,
    },
    label=lambda work, cell: cell_name(cell),
)
def train_cell(
    key: str, work: PolynomialWork, part: Cell, label: str, float_training: PolynomialResult
) -> PolynomialResult:
    """Return the quantized network of a cell; a stopped one goes on from its last checkpoint.

    Raises:
        NonFiniteError: The test loss became NaN or infinite.
    """
    begins = part.start == "pretrained"
    network = state_root() / float_training.network.path
    weights = safetensors.load_file(network) if begins else None
    train = functools.partial(study.train_cell, work.setting, part, work.recipe.grid, weights)
    return _run(key, work, label, train)


def _run(
    key: str, work: PolynomialWork, label: str, train: Callable[..., "Outcome"]
) -> PolynomialResult:
    began = time.monotonic()
    events.record("polynomial", key=key, part="begin")
    kept = trainings.Checkpoints(checkpoint_folder(key), key, trainings.SAVE_SECONDS)
    with work.progress.stage(label, "steps", "training") as advance:
        outcome = train(kept, advance)
    report = {
        "curve": outcome.curve,
        "test_loss": outcome.curve[-1][1],
        "examples_before": outcome.examples_before.tolist(),
        "examples_after": outcome.examples_after.tolist(),
    }
    return PolynomialResult(
        network=publish_tensors(KIND, key, outcome.state),
        report=publish_json(KIND, key, report),
        seconds=time.monotonic() - began,
    )
