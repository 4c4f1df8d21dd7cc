"""One run of one tool: what it gets, how it is measured, what it leaves.

Imported inside the environments of the tools, which have torch and transformers but none of ours.
"""

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.memory import reset_peak, rss_bytes

if TYPE_CHECKING:
    from torch import Tensor

STATUS = Path("/proc/self/status")
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
}

Weights = Callable[[], "dict[str, Tensor]"]  # reads what was made, by the names of the float model


@dataclass(frozen=True)
class Job:
    """What a tool gets; paths are absolute."""

    folder: str  # of the float model
    tokens: str  # safetensors: input_ids, windows x length
    bits: int
    group_size: int | None  # None: one scale a row
    setting: str  # a key of the tool's SETTINGS
    threads: int
    result: str  # JSON to write
    scratch: str  # folder for whatever the tool writes
    weights: str | None  # safetensors to write, dequantized in float32

    @property
    def input_ids(self) -> "Tensor":
        """The calibration windows."""
        from safetensors.torch import load_file

        return load_file(self.tokens)["input_ids"]

    def write(self, path: Path) -> None:
        """Write what `run` reads."""
        path.write_text(json.dumps(asdict(self)))


def run(package: str, prepare: Callable[[Job], Callable[[], Weights]]) -> None:
    """Do the job that the first argument names, and write what it cost.

    Args:
        package: Whose version is told.
        prepare: Imports, loads and returns the work that is measured.
    """
    import torch
    from safetensors.torch import save_file

    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(job.threads)
    work = prepare(job)
    gc.collect()
    reset_peak()
    before, began, cpu = rss_bytes(), time.perf_counter(), cpu_seconds()
    read = work()
    facts: dict[str, Any] = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": cpu_seconds() - cpu,
        "above_start_bytes": peak_bytes() - before,
        "versions": {name: metadata.version(name) for name in (package, "torch", "transformers")},
    }
    if job.weights:
        tensors = {name: one.detach().float().contiguous() for name, one in read().items()}
        save_file({name: one.clone() for name, one in tensors.items()}, job.weights)
    Path(job.result).write_text(json.dumps(facts))
    sys.stdout.flush()
    os._exit(0)  # some tools leave threads that would wait


def cpu_seconds() -> float:
    """Return what all threads of this process, and its children that ended, have used."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_bytes() -> int:
    """Return the peak resident size; `ru_maxrss` would be that of the parent at the fork."""
    line = next(one for one in STATUS.read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
