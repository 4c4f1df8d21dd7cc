"""Checkpoints of a training that several processes share (torch.distributed.checkpoint).

Each process writes its share of all tensors into a file of one folder, which appears when all have
written. It holds the hashes of its files.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import checkpoint as distributed_checkpoint

from normtweak_core.training.checkpoint import (
    BEST,
    KEPT,
    TrainingState,
    require_origin,
    state_of,
)
from normtweak_core.training.processes import Processes

log = logging.getLogger(__name__)

FACTS = "facts.json"
PARTIAL = ".partial"  # behind the name of a folder that is being written


def save_shared(state: TrainingState, folder: Path, origin: str, processes: Processes) -> None:
    """Write a checkpoint, and remove those that are no longer kept; all processes call it.

    Args:
        state: Of which each process holds its share.
        folder: Of this training.
        origin: Hash of what the training starts from; only the same goes on from it.
        processes: Those of the training.
    """
    path = folder / f"step-{state.step:08d}"
    partial = path.with_suffix(PARTIAL)
    if processes.is_first:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
    processes.wait()
    distributed_checkpoint.save(state.tensors(), checkpoint_id=partial)
    if processes.is_first:
        facts = state.facts(origin) | {"files": _hashes(partial)}
        with (partial / FACTS).open("w", encoding="utf-8") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(path, ignore_errors=True)  # one that was passed over
        partial.replace(path)
        for old in shared_checkpoints(folder)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    processes.wait()


def shared_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.suffix != PARTIAL), reverse=True)


def newest_shared(
    folder: Path,
    origin: str,
    at_most: int,
    trained: Mapping[str, Tensor],
    moments: tuple[str, ...],
    processes: Processes,
) -> TrainingState | None:
    """Return this process's share of the newest intact state; None where the training begins.

    A checkpoint that is damaged or of another origin is passed over with a line in the log.

    Args:
        folder: Of the training.
        origin: Hash of what the training starts from.
        at_most: States beyond this step are passed over too.
        trained: This process's share of what is trained, by name; it is not changed.
        moments: Names of the optimizer's moments.
        processes: Those of the training; all of them call this.
    """
    chosen = processes.agreed(_newest(folder, origin, at_most) if processes.is_first else None)
    if chosen is None:
        return None
    path, facts = chosen
    kinds, best = ["weight", *moments], json.loads(facts["best"])
    if best and best[0] != int(facts["step"]):
        kinds.append(BEST)
    tensors = {
        f"{kind}.{name}": tensor.detach().cpu().clone()
        for kind in kinds
        for name, tensor in trained.items()
    }
    distributed_checkpoint.load(tensors, checkpoint_id=path)
    return state_of(facts, tensors)


def _newest(folder: Path, origin: str, at_most: int) -> tuple[Path, dict[str, Any]] | None:
    for path in shared_checkpoints(folder):
        if int(path.name.partition("-")[2]) > at_most:
            continue
        try:
            facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
            require_origin(facts, origin)
            if _hashes(path) != facts["files"]:
                raise ValueError("its bytes are not those that were written")
        except (OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is passed over: %s", path.name, error)
            continue
        return path, facts
    return None


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of tensors, by name."""
    hashes = {}
    for path in sorted(folder.iterdir()):
        if path.name != FACTS:
            with path.open("rb") as file:
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
