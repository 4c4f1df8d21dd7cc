"""Ours, stage by stage: the loop over the blocks as a run has it, on tokens in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.environments import OURS
from tests.benchmarks.peers.job import Job, Weights, run

ENVIRONMENT = OURS
SETTINGS: dict[str, dict[str, Any]] = {
    "fast": {"alpha": 1.0, "tweak": False, "final": False, "effort": "fast"},
    "GPTQ": {"alpha": 0.0, "tweak": False, "final": False},
    "GPTQ + propagation": {"alpha": 1.0, "tweak": False, "final": False},
    "+ norm tweak": {"alpha": 1.0, "tweak": True, "final": False},
    "+ final tune": {"alpha": 1.0, "tweak": True, "final": True},
    "best": {"alpha": 1.0, "tweak": True, "final": True, "effort": "best"},
}
COST = ("fast", "GPTQ", "GPTQ + propagation", "+ norm tweak")


def prepare(job: Job) -> Callable[[], Weights]:
    """Return the work: all blocks, and the final tune where asked for."""
    import torch

    from normtweak_core.library.settings import Settings
    from normtweak_core.model.streaming import StreamedModel
    from normtweak_core.quantization.block import BlockPlan, quantize_block
    from normtweak_core.quantization.dense_model import dense_model, put_scales
    from normtweak_core.quantization.walk import BlockWalk
    from normtweak_core.tweak.final import (
        TuningWindows,
        final_tune,
        put_tuned,
        walked_targets,
    )

    setting, folder, scales = SETTINGS[job.setting], Path(job.folder), torch.float16
    grid = {"bits": job.bits, "group_size": job.group_size}
    settings = Settings(
        effort=setting.get("effort", "standard"),
        quantization=grid | {"propagation": {"alpha": setting["alpha"]}},
        norm_tweak={"enabled": setting["tweak"]},
        final_tune={"enabled": setting["final"]},
    )
    config, tweak = settings.quantization, settings.norm_tweak
    windows = job.input_ids

    def dense(layers: dict, norms: dict) -> "torch.nn.Module":
        return dense_model(folder, layers, norms, torch.float32, scales, "cpu")

    def work() -> Weights:
        walk = BlockWalk(StreamedModel(folder, torch.float32, "cpu"), windows)
        streams, layers, norms = walk.start(), {}, {}
        for index in range(walk.num_blocks):
            plan = BlockPlan(index, walk.num_blocks, config, tweak, scales, settings.block_training)
            block = quantize_block(walk.load(index), streams, walk.runner(index), plan)
            streams, prefix = block.streams, walk.model.block_prefix(index)
            layers |= {f"{prefix}.{name}": weight for name, weight in block.layers.items()}
            norms |= {f"{prefix}.{name}": norm for name, norm in block.norms.items()}
        if setting["final"]:
            tuned_on = TuningWindows.of(windows)
            expected = walked_targets(StreamedModel(folder, torch.float32, "cpu"), tuned_on)
            model = dense(layers, norms)
            put_scales(model, layers, scales)
            config_of_tune = settings.final_tune
            _, tuned = final_tune(model, expected, tuned_on, config_of_tune, norms, scales, seed=0)
            put_tuned(model, tuned, scales)
            return model.state_dict
        return lambda: dense(layers, norms).state_dict()

    return work


if __name__ == "__main__":
    run("normtweak", prepare)
