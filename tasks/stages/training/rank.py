"""A process that shares a training with others; started by `tasks.stages.training.shared`.

It makes the trainer that the stage would make alone, and trains as far as the stage asks.
"""

import itertools
import json
import os
import pickle
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.distributed import PrefixStore, Store, TCPStore

from normtweak_core.distributed.group import Group
from normtweak_core.errors import ForeseenError
from normtweak_core.training.processes import Processes
from tasks.engine.environment import state_root
from tasks.engine.locks import exclusive
from tasks.server.watch import require_parent, watch_arguments, watch_pipe
from tasks.stages.training.training import Training, finished_segment

SECONDS_TO_STOP = 5
SECONDS_BETWEEN_LOOKS = 0.02
NAMESPACE = "training"  # in front of what stage and processes tell each other
# What is written there: what is to be done, and what came of it, by number; a step, counted from
# the first of these processes; that no step follows the running one; why none could.
ORDER, DONE, STEP, STOP, FAILED = "order/", "done/", "step/", "stop", "failed"


def main() -> None:
    """Share a training until told to stop or the parent is gone."""
    parser = watch_arguments(main.__doc__)
    parser.add_argument("--training", type=int, required=True, help="inherited file that holds it")
    options = parser.parse_args()
    require_parent(options)
    watch_pipe(options.alive, SECONDS_TO_STOP)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(max(1, int(os.environ["OMP_NUM_THREADS"]) // size))
    port = int(os.environ["MASTER_PORT"])
    root = TCPStore(os.environ["MASTER_ADDR"], port, is_master=False)
    store = PrefixStore(NAMESPACE, root)
    # Not by the store, which every process of this machine can reach.
    length = os.fstat(options.training).st_size
    training: Training = pickle.loads(os.pread(options.training, length, 0))
    processes = Processes(rank, size)
    device = str(processes.device(training.device))
    with _alone(training, processes), Group(root, rank, size, device):
        try:
            _follow(store, training, processes)
        except ForeseenError as error:
            if processes.is_first:  # all have found the same
                store.set(FAILED, json.dumps([type(error).__name__, str(error)]))
            time.sleep(SECONDS_TO_STOP)  # meanwhile the stage reads it, and ends us


def _alone(training: Training, processes: Processes) -> AbstractContextManager[object]:
    """Hold the folder of checkpoints: processes of a stage that was killed may still write one."""
    if not processes.is_first:
        return nullcontext()
    lock = state_root() / "locks" / "training" / f"{training.folder.name}.lock"
    return exclusive(lock, message="the processes of a run that was killed end")


def _follow(store: Store, training: Training, processes: Processes) -> None:
    """Train as far as each order says; return when a process was told to end."""
    count = itertools.count()

    def step(done: int, steps: int, loss: float, speed: float) -> None:
        if processes.is_first:
            store.set(f"{STEP}{next(count)}", json.dumps([done, steps, loss, speed]))
            if store.check([STOP]):
                signal.raise_signal(signal.SIGTERM)  # heard after this step, which is saved

    trainer = training.trainer
    for number in itertools.count():
        until, key, kind = _order(store, number)
        state = trainer.run(until, step)
        if state.step < until:
            return
        result = finished_segment(training, state, key, kind, processes)
        if processes.is_first:
            store.set(f"{DONE}{number}", result.model_dump_json())


def _order(store: Store, number: int) -> tuple[int, str, str]:
    while not store.check([f"{ORDER}{number}"]):  # not `get`, inside of which no signal is heard
        if store.check([STOP]):
            sys.exit()
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return tuple(json.loads(store.get(f"{ORDER}{number}")))


if __name__ == "__main__":
    main()
