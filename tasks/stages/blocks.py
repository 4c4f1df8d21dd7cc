"""The stage of one block: GPTQ with error propagation, the norm tweak, and its training."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from normtweak_core.evaluate.channel_drift import ChannelDrift
from normtweak_core.export.foreign.config import GRID
from normtweak_core.lazy import lazy
from normtweak_core.model.source import num_processes
from normtweak_core.quantization.config import MixedBits, QuantizationConfig
from tasks.engine import events
from tasks.engine.artifacts import publish, publish_json
from tasks.engine.environment import state_root
from tasks.engine.live_page import show_bar
from tasks.engine.stage import Found, stage
from tasks.models.job import Job
from tasks.models.work import Work
from tasks.results import BlockResult, FinalTuneResult
from tasks.stages.chain import BlockChain, ChainSettings
from tasks.tables.drift import QUANTIZED, TRAINED, TUNED, TWEAKED, Stage

quantization = lazy("normtweak_core.quantization.block")
storage = lazy("normtweak_core.quantization.storage")

# Of a block when a part of it begins; roughly, for the bar on the page.
SHARE_DONE = {"begin": 0.0, "solve": 0.1, "tweak": 0.6, "train": 0.7, "finish": 0.9, "done": 1.0}


def fields_read(config: QuantizationConfig, job: Job, given: bool = False) -> dict[str, Any]:
    """Return the fields that can change a result: no key holds what its method never reads.

    Rounding to nearest has neither an order of columns nor a Hessian to damp, a correction that is
    switched off has no ridge, and activations that stay float are not smoothed. So the baseline of
    every recipe is found whatever its GPTQ is. Only where a mixture of experts needs statistics, it
    matters which of them have few tokens.
    Of codes that a checkpoint has given nothing matters but the checkpoint.
    """
    if given and job.base is not None:
        return {key: getattr(config, key) for key in GRID} | job.of_base
    fields = config.model_dump(mode="json")
    if isinstance(config.bits, MixedBits):
        del fields["bits"]  # a budget and choices: the widths themselves are read
    if config.method == "rtn":
        for unread in ("act_order", "percdamp", "exponents", "sweeps"):
            del fields[unread]
    elif not config.mse_grid:
        del fields["exponents"]
    if config.activation_bits is not None and not config.smoothing.enabled:
        del fields["smoothing"]["alpha"]
    if config.propagation.alpha == 0:
        fields["propagation"] = {"alpha": 0.0}
    if not job.mixes_experts or (config.method == "rtn" and config.propagation.alpha == 0):
        del fields["experts"]
    return fields


def all_blocks(work: Work) -> Sequence[int]:
    """Return the indices of the blocks."""
    return range(work.job.blocks[1])


def settings_of(work: Work, found: Found) -> ChainSettings:
    """Return what the blocks of a recipe have in common."""
    return ChainSettings(
        work.recipe.quantization,
        work.recipe.norm_tweak,
        work.recipe.block_training,
        found["float type"].dtype,
        tuple(found["widths"].widths) if "widths" in found else (),
        None if work.job.base is None else work.job.base.folder,
    )


def _settings_of_the_baseline(work: Work, found: Found) -> ChainSettings:
    return settings_of(work, found).rounded()


def _read_by(settings: ChainSettings, work: Work, index: int) -> dict[str, Any]:
    tweak, job = settings.norm_tweak, work.job
    read = {
        "block": index,
        "num_blocks": job.blocks[1],
        "config": job.fingerprint.config_sha256,
        "weights": job.block_sha256(index),
        "outside": job.outside_blocks_sha256,
        "quantization": fields_read(settings.quantization, job, settings.base is not None),
        "norm_tweak": tweak if tweak.enabled else None,
    }
    if settings.widths:
        read["widths"] = settings.widths_of(index)
    if settings.training.enabled:
        read |= {"training": settings.training, "seed": job.seed}
    return read


@contextlib.contextmanager
def _chain(
    work: Work, found: Found, keys: Sequence[str], settings: ChainSettings, bar: str
) -> Iterator[BlockChain]:
    size = num_processes(work.recipe.devices, work.job.device, work.recipe.model.device)
    chain = BlockChain(work.job, found["calibrate"], settings, keys[0], bar, size)
    with chain.owned():
        yield chain


@stage(
    "block",
    title="blocks",
    needs=("calibrate", "float type", "widths"),
    needs_of=lambda part: ("calibrate", "float type"),  # and the widths of this block alone
    parts=all_blocks,
    chained=True,
    reads=lambda work, found, index: _read_by(settings_of(work, found), work, index),
    around=lambda *run: _chain(*run, settings_of(*run[:2]), "blocks"),
    label=lambda work, index: f"{work.name}block {index}",
    unit="blocks",
)
def block(key: str, part: int, label: str, before: list[BlockResult], shared: Any) -> BlockResult:
    """Return the finished block; its output streams stay with the chain.

    Raises:
        HessianError: A Hessian cannot be factorized.
        NonFiniteError: Activations or losses are not finite.
    """
    chain: BlockChain = shared
    began = time.monotonic()

    def show(step: str) -> None:
        blocks = chain.job.blocks[1]
        text = f"{label}, {part + 1} of {blocks}: {step}"
        show_bar(chain.bar, part + SHARE_DONE[step], blocks, text)

    def note(step: str) -> None:
        events.record("block", block=part, part=step, chain=chain.name)
        show(step)

    show("begin")
    chain.shared.start()
    streams, ranks = chain.shared.begin(part, chain.streams_before(part, before))
    done = quantization.quantize_block(
        chain.walk.load(part),
        streams,
        chain.walk.runner(part),
        chain.plan(part),
        note=note,
        ranks=ranks,
        given=chain.walk.given(part),
    )

    def write_weights(path: Path) -> None:
        storage.save_block(path, done.layers, done.norms)

    def write_drift(path: Path) -> None:
        drift = {QUANTIZED: [done.drift_quantized], TWEAKED: [done.drift_tweaked]}
        if done.report.training is not None:
            drift[TRAINED] = [done.drift_trained]
        storage.save_drift(path, drift)

    x_f, x_q = storage.stream_hashes(done.streams)
    result = BlockResult(
        block=part,
        weights=publish("blocks", key, write_weights, "safetensors"),
        report=publish_json("blocks", key, done.report.model_dump(mode="json")),
        drift=publish("drift", key, write_drift, "safetensors"),
        x_f_sha256=x_f,
        x_q_sha256=x_q,
        seconds=time.monotonic() - began,
    )
    chain.keep(part + 1, done.streams)
    note("done")
    return result


# The same blocks rounded to nearest, which every drift plot shows beside the run.
baseline = block.but(
    name="baseline",
    kind="block",
    title="baseline",
    reads=lambda work, found, index: _read_by(_settings_of_the_baseline(work, found), work, index),
    around=lambda *run: _chain(*run, _settings_of_the_baseline(*run[:2]), "rtn blocks"),
    label=lambda work, index: f"rtn {index}",
)


def measured_stages(
    blocks: list[BlockResult],
    baseline: list[BlockResult],
    tuned: FinalTuneResult | None,
    tweaked: bool,
    trained: bool,
) -> dict[Stage, ChannelDrift]:
    """Return the drift of a run at each stage it had, from what its stages have stored.

    Args:
        blocks: The blocks of the run.
        baseline: The same blocks rounded to nearest.
        tuned: The final tune; None: it was off.
        tweaked: Whether the norm tweak was on.
        trained: Whether the blocks were trained.
    """

    def chain(results: list[BlockResult], stage: str) -> ChannelDrift:
        return ChannelDrift.read([state_root() / one.drift.path for one in results], stage)

    stages: dict[Stage, ChannelDrift] = {
        "round to nearest": chain(baseline, QUANTIZED),
        "quantized": chain(blocks, QUANTIZED),
    }
    if tweaked:
        stages["norm tweak"] = chain(blocks, TWEAKED)
    if trained:
        stages["block training"] = chain(blocks, TRAINED)
    if tuned is not None:
        stages["final tune"] = ChannelDrift.read([state_root() / tuned.drift.path], TUNED)
    return stages
