"""The two streams between blocks: only the newest boundary is kept, and any can be made again."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from normtweak_core.errors import ForeseenError
from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.lazy import lazy
from normtweak_core.quantization.config import PropagationConfig, QuantizationConfig
from normtweak_core.tweak.config import NormTweakConfig
from tasks.engine import events
from tasks.engine.artifacts import temporary_beside
from tasks.engine.environment import state_root
from tasks.engine.locks import exclusive
from tasks.models.job import Job, torch_dtype
from tasks.results import BlockResult, CalibrationResult
from tasks.stages.calibrate import data_with_images

if TYPE_CHECKING:
    import torch

    from normtweak_core.export.foreign.base import BaseWeights
    from normtweak_core.quantization.plan import BlockPlan
    from normtweak_core.quantization.streams import Streams
    from normtweak_core.quantization.walk import BlockWalk
    from tasks.stages.shared_blocks import SharedBlocks

plans = lazy("normtweak_core.quantization.plan")
shared_blocks = lazy("tasks.stages.shared_blocks")
storage = lazy("normtweak_core.quantization.storage")
streaming = lazy("normtweak_core.model.streaming")
walks = lazy("normtweak_core.quantization.walk")

log = logging.getLogger(__name__)

BASELINE = {"method": "rtn", "propagation": PropagationConfig(alpha=0)}


@dataclass(frozen=True)
class ChainSettings:
    """What the blocks of one chain have in common."""

    quantization: QuantizationConfig
    norm_tweak: NormTweakConfig
    training: BlockTrainingConfig
    export_dtype: str
    widths: tuple[dict[str, int], ...] = ()  # of each block, where the recipe leaves them open
    base: Path | None = None  # folder of the checkpoint whose codes are kept

    def widths_of(self, index: int) -> dict[str, int]:
        """Return the widths of a block's linears; none where all have that of the recipe."""
        return self.widths[index] if self.widths else {}

    def rounded(self) -> "ChainSettings":
        """Return the same chain rounded to nearest, without any training."""
        config = QuantizationConfig.model_validate(self.quantization.model_dump() | BASELINE)
        off = NormTweakConfig(enabled=False), BlockTrainingConfig(enabled=False)
        return ChainSettings(config, *off, self.export_dtype, self.widths)


class StreamError(ForeseenError):
    """A boundary made again differs from the one recorded: this machine computes differently."""


class Chain:
    """Hands each block its input streams: from memory, or by running the finished blocks again."""

    def __init__(self, job: Job, windows: CalibrationResult, dtype: str):
        """Note what is walked; nothing is loaded yet.

        Args:
            job: Model and machine.
            windows: What passes through the blocks.
            dtype: In which the blocks compute.
        """
        self.job, self.windows, self.dtype = job, windows, dtype
        self._newest: tuple[int, Streams] | None = None

    @functools.cached_property
    def walk(self) -> "BlockWalk":
        """The walk over the windows; loads the model on first use."""
        dtype = torch_dtype(self.dtype)
        model = streaming.StreamedModel(self.job.folder, dtype, self.job.device)
        base = self.base_weights()
        return walks.BlockWalk(model, data_with_images(self.windows), base, self.job.folder, dtype)

    def base_weights(self) -> "BaseWeights | None":
        """Return the checkpoint whose codes are kept, if there is one."""
        return None

    def streams_before(self, index: int, finished: list[Any]) -> "Streams":
        """Return what reaches block ``index``; ``finished`` are the results of those before it.

        Raises:
            StreamError: A boundary that had to be made again is not what was recorded.
        """
        newest, self._newest = self._newest, None  # a block overwrites what it is given
        if newest and newest[0] == index:
            return newest[1]
        if index and (stored := self.stored(index, finished[index - 1])):
            return stored
        if index:
            log.info("streams before block %d are gone: running the finished blocks again", index)
            events.record("replay", block=index)
        streams = self.walk.start()
        for position, done in enumerate(finished[:index]):
            streams = self.replay(position, streams, done)
            if storage.stream_hashes(streams) != (done.x_f_sha256, done.x_q_sha256):
                raise StreamError(
                    f"the streams behind block {position} must be those recorded; this machine "
                    "computes others: run `normtweak clean --all` and start again"
                )
        return streams

    def keep(self, index: int, streams: "Streams") -> None:
        """Keep the streams in front of block ``index``."""
        self._newest = (index, streams)

    def stored(self, index: int, before: Any) -> "Streams | None":
        """Return what reaches a block, where it lies on disk as the block before it left it."""
        return None

    def replay(self, position: int, streams: "Streams", done: Any) -> "Streams":
        """Return what leaves a finished block."""
        raise NotImplementedError


class BlockChain(Chain):
    """The chain of a quantization: the newest boundary is on disk as well."""

    def __init__(
        self,
        job: Job,
        calibration: CalibrationResult,
        settings: ChainSettings,
        name: str,
        bar: str = "blocks",
        size: int = 1,
    ):
        """Prepare a chain.

        Args:
            job: Model and machine.
            calibration: Windows to walk.
            settings: What the blocks have in common.
            name: Identifies the chain on disk: the key of its first block.
            bar: Of the page of the run, that shows how far the blocks are.
            size: Processes that share the windows.
        """
        super().__init__(job, calibration, job.model.dtype)
        self._size = size
        self.settings, self.name, self.bar = settings, name.replace("/", "-"), bar

    @property
    def folder(self) -> Path:
        """Where the newest boundary lies."""
        return state_root() / "artifacts" / "streams" / self.name

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the chain: one process at a time works on its blocks and boundaries."""
        with exclusive(
            state_root() / "locks" / "chains" / f"{self.name}.lock",
            message="another run of the same recipe works on these blocks",
        ):
            try:
                yield
            finally:
                if "shared" in vars(self):
                    self.shared.end()

    def base_weights(self) -> "BaseWeights | None":
        """Return the checkpoint whose codes are kept, if there is one."""
        return None if self.settings.base is None else self.job.base_weights()

    @functools.cached_property
    def shared(self) -> "SharedBlocks":
        """The processes that share the windows, to be started with the first block."""
        settings = self.settings
        work = shared_blocks.BlockWork(
            folder=self.job.folder,
            dtype=self.dtype,
            device=self.job.device,
            windows=state_root() / self.windows.windows.path,
            quantization=settings.quantization,
            norm_tweak=settings.norm_tweak,
            training=settings.training,
            seed=self.job.seed,
            export_dtype=settings.export_dtype,
            widths=settings.widths,
            base=settings.base,
        )
        return shared_blocks.SharedBlocks(work, self._size)

    @property
    def export_dtype(self) -> "torch.dtype":
        """The float type scales and norms are rounded to."""
        return torch_dtype(self.settings.export_dtype)

    def plan(self, index: int) -> "BlockPlan":
        """Return everything one block's result depends on besides weights and streams."""
        return plans.BlockPlan(
            index,
            self.walk.num_blocks,
            self.settings.quantization,
            self.settings.norm_tweak,
            self.export_dtype,
            self.settings.training,
            self.job.seed,
            self.settings.widths_of(index),
        )

    def keep(self, index: int, streams: "Streams") -> None:
        """Keep the streams in front of block ``index`` and drop the boundary before them."""
        super().keep(index, streams)
        path = self._path(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        if index < self.walk.num_blocks:  # nothing reads the boundary behind the last block
            temporary = temporary_beside(path)
            storage.save_streams(temporary, streams)
            temporary.replace(path)
        for old in self.folder.glob("boundary-*.safetensors"):
            if old != path:
                old.unlink()

    def _path(self, index: int) -> Path:
        return self.folder / f"boundary-{index:03d}.safetensors"

    def stored(self, index: int, before: BlockResult) -> "Streams | None":
        """Return the boundary before a block, if it is there and as recorded."""
        if not self._path(index).is_file():
            return None
        try:
            streams = storage.load_streams(self._path(index))
        except (SafetensorError, KeyError):  # torn or altered: made again from finished blocks
            return None
        found = storage.stream_hashes(streams)
        return streams if found == (before.x_f_sha256, before.x_q_sha256) else None

    def replay(self, position: int, streams: "Streams", done: BlockResult) -> "Streams":
        """Return what leaves a quantized block and the float one."""
        layers, norms = storage.load_block(
            state_root() / done.weights.path,
            self.settings.quantization,
            self.settings.widths_of(position),
        )
        return self.walk.replay(position, streams, layers, norms, self.export_dtype)
