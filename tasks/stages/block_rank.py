"""A process that does its share of each block of a chain; started by `tasks.stages.shared_blocks`.

It has the weights of the block at hand, and sees the streams in memory that all processes share.
Which block is next it hears from the first process, until that ends it.
"""

import os
from pathlib import Path

import torch
from pydantic import BaseModel
from torch.distributed import TCPStore

from normtweak_core.calibration.storage import load_calibration_set
from normtweak_core.distributed.group import Group
from normtweak_core.distributed.ranks import Ranks
from normtweak_core.distributed.shared_memory import shared_tensors
from normtweak_core.export.foreign.base import BaseWeights
from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.block import help_with
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.streams import Streams
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig
from tasks.server.watch import require_parent, watch_arguments, watch_pipe

SECONDS_TO_STOP = 5
# Room beside both streams: what the tweak passes through a block once more, and its local target.
SPARE = ("before", "target")


class BlockWork(BaseModel, frozen=True):
    """What the blocks of a chain have in common."""

    folder: Path
    dtype: str
    device: str  # of the first process; on GPUs the others take those behind it
    windows: Path
    quantization: QuantizationConfig
    norm_tweak: NormTweakConfig
    training: BlockTrainingConfig
    seed: int
    export_dtype: str
    widths: tuple[dict[str, int], ...] = ()
    base: Path | None = None  # folder of the checkpoint whose codes are kept

    def plan(self, index: int, num_blocks: int) -> BlockPlan:
        """Return everything one block's result depends on besides weights and streams."""
        dtype = getattr(torch, self.export_dtype)
        return BlockPlan(
            index,
            num_blocks,
            self.quantization,
            self.norm_tweak,
            dtype,
            self.training,
            self.seed,
            self.widths[index] if self.widths else {},
        )

    def device_of(self, rank: int) -> str:
        """Return what a process computes on."""
        kind, _, number = self.device.partition(":")
        return f"{kind}:{int(number) + rank}" if number else kind

    def room(self, file: int, shape: list[int]) -> Streams:
        """Return both streams, and room beside them, in a file that processes share."""
        dtype = getattr(torch, self.dtype)
        x_f, x_q, *spare = shared_tensors(file, 2 + len(SPARE), shape, dtype)
        return Streams(x_f, x_q, dict(zip(SPARE, spare, strict=True)))


def main() -> None:
    """Share the work on blocks until told to stop or the parent is gone."""
    parser = watch_arguments(main.__doc__)
    parser.add_argument("--streams", type=int, required=True, help="inherited file of the streams")
    parser.add_argument("--work", type=BlockWork.model_validate_json, required=True, help="JSON")
    options = parser.parse_args()
    require_parent(options)
    watch_pipe(options.alive, SECONDS_TO_STOP)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # of the first one: the same bytes
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    work: BlockWork = options.work
    model = StreamedModel(work.folder, getattr(torch, work.dtype), work.device_of(rank))
    base = None if work.base is None else BaseWeights(work.base, work.folder)
    windows = load_calibration_set(work.windows).windows
    walk = BlockWalk(model, windows, base, work.folder, getattr(torch, work.dtype))
    with Group(store, rank, size, work.device_of(rank)) as ranks:
        _work(work, walk, options.streams, ranks)


def _work(work: BlockWork, walk: BlockWalk, file: int, ranks: Ranks) -> None:
    shape = torch.zeros(3, dtype=torch.int64)
    ranks.agree(shape)
    streams = work.room(file, shape.tolist())
    while True:
        index = ranks.number(0)
        plan = work.plan(index, walk.num_blocks)
        help_with(walk.load(index), streams, walk.runner(index), plan, ranks, walk.given(index))


if __name__ == "__main__":
    main()
