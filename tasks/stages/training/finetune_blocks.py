"""The block stages of a fine-tuning: each block of the export learns its float output."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.lazy import lazy
from tasks.engine import events
from tasks.engine.artifacts import NOT_CONTENT, ArtifactRef, Result, publish_tensors
from tasks.engine.environment import state_root
from tasks.engine.stage import Found, stage
from tasks.models.job import Job
from tasks.models.starting_point import StartingPoint
from tasks.models.work import Work
from tasks.results import CalibrationResult
from tasks.stages.chain import Chain

if TYPE_CHECKING:
    from normtweak_core.quantization.streams import Streams

blocks = lazy("normtweak_core.quantization.streams")
finetuning = lazy("normtweak_core.finetune.block")
grids = lazy("normtweak_core.finetune.model")
safetensors = lazy("safetensors.torch")
storage = lazy("normtweak_core.quantization.storage")
streaming = lazy("normtweak_core.model.streaming")
walks = lazy("normtweak_core.quantization.walk")

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


def _reads(work: Work, found: Found, index: int) -> dict[str, Any]:
    return {
        "finetune": work.recipe.finetune.model_dump(include=READ),
        "block": index,
        "seed": work.job.seed,
        "levels": found["start"].source.levels,
        "model": work.job.fingerprint.sha256,
    }


class FinetuneChain(Chain):
    """The chain of a fine-tuning: a pass through finished blocks is short beside a training."""

    def __init__(
        self, job: Job, data: CalibrationResult, start: StartingPoint, config: FinetuneConfig
    ):
        """Note what the blocks have in common; nothing is loaded yet."""
        # What is trained is float32, whatever the float model's arithmetic is elsewhere.
        super().__init__(job, data, "float32")
        self.start, self.config = start, config

    def on_grids(self, index: int) -> Any:
        """Return a fresh copy of a block with the export's linears in it."""
        prefix = f"{self.walk.model.block_prefix(index)}."
        return self.start.put_into(self.walk.load(index), self.config, self.job.seed, prefix)

    def replay(self, position: int, streams: "Streams", done: TrainedBlockResult) -> "Streams":
        """Return what leaves a trained block and the float one."""
        run, trained = self.walk.runner(position), self.on_grids(position)
        grids.load_trained(trained, safetensors.load_file(state_root() / done.state.path))
        return blocks.Streams(
            blocks.run_stream(self.walk.load(position), streams.x_f, run),
            blocks.run_stream(trained, streams.x_q, run),
        )


@contextlib.contextmanager
def _chain(work: Work, found: Found, keys: Sequence[str]) -> Iterator[FinetuneChain]:
    yield FinetuneChain(work.job, found["data"], found["start"], work.recipe.finetune)


@stage(
    "block",
    kind="finetune-block",
    title="blocks",
    needs=("data", "start"),
    reads=_reads,
    when=lambda work: work.recipe.finetune.block_steps > 0,
    parts=lambda work: range(work.job.blocks[1]),
    chained=True,
    around=_chain,
    label=lambda work, index: f"block {index}",
)
def finetune_block(
    key: str, work: Work, part: int, label: str, before: list[TrainedBlockResult], shared: Any
) -> TrainedBlockResult:
    """Return a block that has learned its float output, or stayed as it was.

    Raises:
        NonFiniteError: The loss became NaN or infinite.
        StreamError: This machine does not compute what was recorded.
    """
    events.record("finetune-block", part="begin", block=part)
    began = time.monotonic()
    chain: FinetuneChain = shared
    streams = chain.streams_before(part, before)
    where = (part, chain.job.blocks[1])
    with work.progress.stage(label, "steps", "blocks", where) as advance:
        done = finetuning.finetune_block(
            chain.walk.load(part),
            chain.on_grids(part),
            streams,
            chain.walk.runner(part),
            chain.config,
            chain.job.seed,
            part,
            advance,
        )
    state = publish_tensors("finetune", key, done.state)
    chain.keep(part + 1, done.streams)
    x_f, x_q = storage.stream_hashes(done.streams)
    return TrainedBlockResult(
        block=part,
        state=state,
        distance_before=done.report.distance_before,
        distance_after=done.report.distance_after,
        accepted=done.report.accepted,
        x_f_sha256=x_f,
        x_q_sha256=x_q,
        seconds=time.monotonic() - began,
    )
