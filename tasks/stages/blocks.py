"""The stage of one block: GPTQ with error propagation, then the norm tweak."""

import logging
import time
from pathlib import Path
from typing import Any

from prefect import task

from normtweak_core.evaluate.channel_drift import ChannelDrift
from normtweak_core.quantization.config import QuantizationConfig
from tasks.engine import events
from tasks.engine.artifacts import content_hash, publish, publish_json
from tasks.engine.environment import state_root
from tasks.engine.live_page import show_bar
from tasks.models.job import STAGE, Job
from tasks.results import BlockResult, CalibrationResult, FinalTuneResult
from tasks.stages.chain import BlockChain, ChainSettings
from tasks.tables.drift import QUANTIZED, TUNED, TWEAKED, Stage

log = logging.getLogger(__name__)

# Of a block when a part of it begins; roughly, for the bar on the page.
SHARE_DONE = {"begin": 0.0, "solve": 0.1, "tweak": 0.6, "finish": 0.9, "done": 1.0}

SOURCES = [
    __name__,
    "normtweak_core.calibration.storage",
    "normtweak_core.quantization.block",
    "normtweak_core.quantization.walk",
]


def fields_read(config: QuantizationConfig) -> dict[str, Any]:
    """Return the fields that can change a result: no key holds what its method never reads.

    Rounding to nearest has neither an order of columns nor a Hessian to damp, and a correction that
    is switched off has no ridge. So the baseline of every recipe is found whatever its GPTQ is.
    """
    fields = config.model_dump(mode="json")
    if config.method == "rtn":
        del fields["act_order"], fields["percdamp"]
    if config.propagation.alpha == 0:
        del fields["propagation"]["ridge"]
    return fields


def block_key(
    job: Job, calibration: CalibrationResult, settings: ChainSettings, index: int, parent: Any
) -> str:
    """Return the key of one block: what it reads, and the content of the block before it."""
    tweak = settings.norm_tweak
    inputs = {
        "block": index,
        "num_blocks": job.blocks[1],
        "config": job.fingerprint.config_sha256,
        "weights": job.block_sha256(index),
        "outside": job.outside_blocks_sha256,
        "quantization": fields_read(settings.quantization),
        "norm_tweak": tweak if tweak.enabled else None,
        "export_dtype": settings.export_dtype,
    }
    parents = [calibration.windows.sha256] + ([content_hash(parent)] if parent else [])
    return job.key("block", parents=parents, inputs=inputs, sources=SOURCES)


@task(task_run_name="{label}-{index:02d}", **STAGE)
def quantize_block_stage(
    key: str, label: str, index: int, chain: Any, finished: Any
) -> BlockResult:
    """Return the finished block; its output streams stay with the chain.

    Args:
        key: Cache key.
        label: What the chain is called on the page: "block" or "rtn".
        index: Which block.
        chain: The `BlockChain`.
        finished: Results of the blocks before.

    Raises:
        HessianError: A Hessian cannot be factorized.
        NonFiniteError: Activations or losses are not finite.
    """
    from normtweak_core.quantization.block import quantize_block
    from normtweak_core.quantization.storage import save_block, save_drift, stream_hash

    def write_drift(path: Path) -> None:
        save_drift(path, {QUANTIZED: [done.drift_quantized], TWEAKED: [done.drift_tweaked]})

    owner: BlockChain = chain
    began = time.monotonic()

    def note(part: str) -> None:
        events.record("block", block=index, part=part, chain=owner.name)
        _show(label, index, owner.job.blocks[1], part)

    _show(label, index, owner.job.blocks[1], "begin")
    streams = owner.streams_before(index, finished)
    done = quantize_block(
        owner.walk.load(index),
        streams,
        owner.walk.runner(index),
        owner.plan(index),
        note=note,
    )
    result = BlockResult(
        block=index,
        weights=publish(
            "blocks", key, lambda path: save_block(path, done.layers, done.norms), "safetensors"
        ),
        report=publish_json("blocks", key, done.report.model_dump(mode="json")),
        drift=publish("drift", key, write_drift, "safetensors"),
        x_f_sha256=stream_hash(done.streams.x_f),
        x_q_sha256=stream_hash(done.streams.x_q),
        seconds=time.monotonic() - began,
    )
    owner.keep(index + 1, done.streams)
    note("done")
    return result


def _show(label: str, index: int, blocks: int, part: str) -> None:
    name = "rtn blocks" if label == "rtn" else "blocks"  # the cells of an ablation share one bar
    text = f"{label} {index}, {index + 1} of {blocks}: {part}"
    show_bar(name, index + SHARE_DONE[part], blocks, text)


def measured_stages(
    blocks: list[BlockResult],
    baseline: list[BlockResult],
    tuned: FinalTuneResult | None,
    tweaked: bool,
) -> dict[Stage, ChannelDrift]:
    """Return the drift of a run at each stage it had, from what its stages have stored.

    Args:
        blocks: The blocks of the run.
        baseline: The same blocks rounded to nearest.
        tuned: The final tune; None: it was off.
        tweaked: Whether the norm tweak was on.
    """

    def chain(results: list[BlockResult], stage: str) -> ChannelDrift:
        return ChannelDrift.read([state_root() / one.drift.path for one in results], stage)

    stages: dict[Stage, ChannelDrift] = {
        "round to nearest": chain(baseline, QUANTIZED),
        "quantized": chain(blocks, QUANTIZED),
    }
    if tweaked:
        stages["norm tweak"] = chain(blocks, TWEAKED)
    if tuned is not None:
        stages["final tune"] = ChannelDrift.read([state_root() / tuned.drift.path], TUNED)
    return stages
