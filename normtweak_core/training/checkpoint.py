"""Where a training stands: weights, Adam's moments, losses, position and best weights.

One process writes it into one file; what several processes share, into a folder
(`normtweak_core.training.shared_checkpoint`).

Nothing else decides how a training goes on: the order of the windows follows from seed and
epoch, rates and lambdas from the step, and the models draw no random numbers (they run without
dropout), so there is no state of a generator to keep.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from normtweak_core.training.objective import HeldOut
from normtweak_core.training.processes import Processes, whole

log = logging.getLogger(__name__)

KEPT = 2  # checkpoints: the newest, and one before it in case the newest is damaged
BEST = "best"  # in front of the names of the best weights


@dataclass(frozen=True)
class Best:
    """The weights that held-out windows liked best so far, those of the start among them.

    Where several processes train, each holds its share of every tensor here and below.
    """

    step: int  # optimizer steps done
    held_out: float  # the objective on them
    weights: dict[str, Tensor]  # on the CPU

    def whole(self, processes: Processes) -> dict[str, Tensor]:
        """Return all of the weights to the first process; the others ask for it too."""
        gathered = {}
        for name, tensor in self.weights.items():
            one = whole(tensor)
            if processes.is_first:
                gathered[name] = one
        return gathered


@dataclass
class TrainingState:
    """Everything that the next step depends on, by parameter name."""

    step: int  # optimizer steps done
    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]  # by name of the moment; empty before the first step
    losses: list[float]  # of every step so far
    seconds: float  # spent in all runs together
    held_out: dict[int, HeldOut] = field(default_factory=dict)  # by steps done
    best: Best | None = None  # None: nothing was measured

    def sha256(self) -> str:
        """Return a hash of all but the seconds; where several processes train, all ask for it."""
        best = self.best and (self.best.step, self.best.held_out)
        values = [self.step, self.losses, sorted(self.held_out.items()), best]
        digest = hashlib.sha256(json.dumps(values).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(name.encode())
            digest.update(whole(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint by their names in it."""
        named = {f"weight.{name}": tensor for name, tensor in self.weights.items()}
        for moment, tensors in self.moments.items():
            named |= {f"{moment}.{name}": tensor for name, tensor in tensors.items()}
        if self.best is not None and self.best.step != self.step:  # else they are the weights
            named |= {f"{BEST}.{name}": tensor for name, tensor in self.best.weights.items()}
        return named

    def facts(self, origin: str) -> dict[str, str]:
        """Return what a checkpoint holds beside tensors."""
        return {
            "origin": origin,
            "step": str(self.step),
            "seconds": repr(self.seconds),
            "losses": json.dumps(self.losses),
            "held_out": json.dumps(self.held_out),
            "best": json.dumps(self.best and [self.best.step, self.best.held_out]),
        }

    def save(self, folder: Path, origin: str) -> Path:
        """Write a checkpoint, remove those that are no longer kept, and return its path.

        The file appears complete or not at all.

        Args:
            folder: Of this training.
            origin: Hash of what the training starts from; only the same goes on from it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{self.step:08d}.safetensors"
        temporary = path.with_suffix(".partial")
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors().items()}
        facts = self.facts(origin) | {"sha256": self.sha256()}
        save_file(tensors, temporary, metadata=facts)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        for old in checkpoints(folder)[KEPT:]:
            old.unlink(missing_ok=True)
        return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def newest_state(folder: Path, origin: str, at_most: int) -> TrainingState | None:
    """Return the newest intact state of a training; None where it has to begin.

    A checkpoint that is damaged or of another origin is passed over with a line in the log.

    Args:
        folder: Of the training.
        origin: Hash of what the training starts from.
        at_most: States beyond this step are passed over too.
    """
    for path in checkpoints(folder):
        if int(path.stem.partition("-")[2]) > at_most:
            continue
        try:
            return _load(path, origin)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is passed over: %s", path.name, error)
    return None


def _load(path: Path, origin: str) -> TrainingState:
    with safe_open(path, "pt") as file:
        facts = file.metadata() or {}
        require_origin(facts, origin)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    state = state_of(facts, tensors)
    if state.sha256() != facts["sha256"]:
        raise ValueError("its bytes are not those that were written")
    return state


def require_origin(facts: Mapping[str, Any], origin: str) -> None:
    """Accept the facts of a checkpoint of this training.

    Raises:
        ValueError: They are those of another one.
    """
    if facts.get("origin") != origin:
        raise ValueError("it belongs to another training")


def state_of(facts: Mapping[str, Any], tensors: dict[str, Tensor]) -> TrainingState:
    """Return the state that a checkpoint holds."""
    parts: dict[str, dict[str, Tensor]] = {"weight": {}}
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition(".")
        parts.setdefault(kind, {})[parameter] = tensor
    weights, best, chosen = parts.pop("weight"), parts.pop(BEST, {}), json.loads(facts["best"])
    return TrainingState(
        step=int(facts["step"]),
        weights=weights,
        moments=parts,
        losses=json.loads(facts["losses"]),
        seconds=float(facts["seconds"]),
        held_out={int(n): HeldOut(*one) for n, one in json.loads(facts["held_out"]).items()},
        best=Best(*chosen, best or weights) if chosen else None,
    )
