"""The block stages of a fine-tuning: each block of the export learns its float output."""

import time
from typing import TYPE_CHECKING, Annotated, Any

from prefect import task

from normtweak_core.finetune.config import FinetuneConfig
from tasks.engine import events
from tasks.engine.artifacts import NOT_CONTENT, ArtifactRef, Result, content_hash, publish
from tasks.engine.environment import state_root
from tasks.engine.progress import Progress
from tasks.models.job import STAGE, Job, torch_dtype
from tasks.models.starting_point import StartingPoint
from tasks.results import CalibrationResult
from tasks.stages.chain import StreamError

if TYPE_CHECKING:
    from normtweak_core.quantization.block import Streams
    from normtweak_core.quantization.walk import BlockWalk

SOURCES = [
    __name__,
    "normtweak_core.calibration.storage",
    "normtweak_core.export.exported",
    "normtweak_core.export.verification.verify",
    "normtweak_core.finetune.block",
    "normtweak_core.finetune.model",
    "normtweak_core.model.streaming",
    "normtweak_core.quantization.block",
    "normtweak_core.quantization.storage",
    "normtweak_core.quantization.walk",
]
READ = {"block_steps", "batch", "lr", "scale_lr", "clip", "lora", "dtype"}


class TrainedBlockResult(Result, frozen=True):
    """A trained block and the hashes of its output streams."""

    block: int
    state: ArtifactRef  # what is trained
    distance_before: float
    distance_after: float
    accepted: bool
    x_f_sha256: str
    x_q_sha256: str
    seconds: Annotated[float, NOT_CONTENT]


def trained_block_key(
    job: Job,
    data: CalibrationResult,
    start: StartingPoint,
    config: FinetuneConfig,
    index: int,
    parent: TrainedBlockResult | None,
) -> str:
    """Return the key of a block: it depends on all blocks before it through their streams."""
    inputs = {
        "finetune": config.model_dump(include=READ),
        "block": index,
        "seed": job.seed,
        "levels": start.source.levels,
        "model": job.fingerprint.sha256,
    }
    parents = [data.windows.sha256, content_hash(start.export)]
    parents += [content_hash(parent)] if parent else []
    return job.key("finetune-block", parents=parents, inputs=inputs, sources=SOURCES)


class FinetuneChain:
    """Hands each block its input streams: from memory, or by running the finished blocks.

    Nothing of the streams is on disk: a pass through finished blocks is short beside a training.
    """

    def __init__(
        self, job: Job, data: CalibrationResult, start: StartingPoint, config: FinetuneConfig
    ):
        """Note what the blocks have in common; nothing is loaded yet."""
        self.job, self.data, self.start, self.config = job, data, start, config
        self._walk: BlockWalk | None = None
        self._newest: tuple[int, Streams] | None = None

    @property
    def walk(self) -> "BlockWalk":
        """The walk over the windows; loads the model on first use."""
        if self._walk is None:
            from normtweak_core.calibration.storage import load_calibration_set
            from normtweak_core.model.streaming import StreamedModel
            from normtweak_core.quantization.walk import BlockWalk

            windows = load_calibration_set(state_root() / self.data.windows.path).input_ids
            # What is trained is float32, whatever the float model's arithmetic is elsewhere.
            model = StreamedModel(self.job.folder, torch_dtype("float32"), self.job.device)
            self._walk = BlockWalk(model, windows)
        return self._walk

    def on_grids(self, index: int) -> Any:
        """Return a fresh copy of a block with the export's linears in it."""
        prefix = f"{self.walk.model.block_prefix(index)}."
        return self.start.put_into(self.walk.load(index), self.config, self.job.seed, prefix)

    def streams_before(self, index: int, finished: list[TrainedBlockResult]) -> "Streams":
        """Return what reaches block ``index``; ``finished`` are the results of those before it.

        Raises:
            StreamError: Running a finished block again gives something else than was recorded.
        """
        from safetensors.torch import load_file

        from normtweak_core.finetune.model import load_trained
        from normtweak_core.quantization.block import Streams, run_stream

        if self._newest and self._newest[0] == index:
            return self._newest[1]
        streams = self.walk.start()
        for position in range(index):
            done, run = finished[position], self.walk.runner(position)
            trained = self.on_grids(position)
            load_trained(trained, load_file(state_root() / done.state.path))
            streams = Streams(
                run_stream(self.walk.load(position), streams.x_f, run),
                run_stream(trained, streams.x_q, run),
            )
            if stream_hashes(streams) != (done.x_f_sha256, done.x_q_sha256):
                raise StreamError(
                    f"the streams behind block {position} must be those recorded; this machine "
                    "computes others: run `normtweak clean --all` and start again"
                )
        return streams

    def keep(self, index: int, streams: "Streams") -> None:
        """Keep in memory what reaches block ``index``."""
        self._newest = (index, streams)


def stream_hashes(streams: "Streams") -> tuple[str, str]:
    """Return the hashes of both streams."""
    from normtweak_core.quantization.storage import stream_hash

    return stream_hash(streams.x_f), stream_hash(streams.x_q)


@task(task_run_name="finetune-block-{index}", **STAGE)
def finetune_block_stage(
    key: str, index: int, chain: Any, finished: Any, progress: Any
) -> TrainedBlockResult:
    """Return a block that has learned its float output, or stayed as it was.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
        StreamError: This machine does not compute what was recorded.
    """
    from safetensors.torch import save_file

    from normtweak_core.finetune.block import finetune_block

    events.record("finetune-block", part="begin", block=index)
    began = time.monotonic()
    work: FinetuneChain = chain
    bar: Progress = progress
    streams = work.streams_before(index, finished)
    part = (index, work.job.blocks[1])
    with bar.stage(f"block {index}", "steps", "blocks", part) as advance:
        done = finetune_block(
            work.walk.load(index),
            work.on_grids(index),
            streams,
            work.walk.runner(index),
            work.config,
            work.job.seed,
            index,
            advance,
        )
    state = {name: tensor.contiguous() for name, tensor in sorted(done.state.items())}
    reference = publish(
        "finetune",
        key,
        lambda path: save_file(state, path, metadata={"format": "pt"}),
        "safetensors",
    )
    work.keep(index + 1, done.streams)
    x_f, x_q = stream_hashes(done.streams)
    return TrainedBlockResult(
        block=index,
        state=reference,
        distance_before=done.report.distance_before,
        distance_after=done.report.distance_after,
        accepted=done.report.accepted,
        x_f_sha256=x_f,
        x_q_sha256=x_q,
        seconds=time.monotonic() - began,
    )
