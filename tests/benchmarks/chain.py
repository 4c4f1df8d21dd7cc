"""A model quantized block by block on the bare core, for studies of many settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.dense_model import dense_model, put_scales
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.report import BlockReport
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import FinalTuneConfig, NormTweakConfig
from normtweak_core.tweak.final import TuningWindows, final_tune, put_tuned, walked_targets

OFF = FinalTuneConfig(enabled=False)
UNTRAINED = BlockTrainingConfig(enabled=False)


def quantized_model(
    folder: Path,
    windows: torch.Tensor,
    quantization: QuantizationConfig,
    tweak: NormTweakConfig,
    training: BlockTrainingConfig = UNTRAINED,
    tune: FinalTuneConfig = OFF,
    seed: int = 0,
    widths: Sequence[Mapping[str, int]] = (),
) -> tuple[PreTrainedModel, list[BlockReport]]:
    """Return the model of a folder as its export would be in float16, and what its blocks tell.

    Where the widths of linears differ, they are given by block and name.
    """
    streamed = StreamedModel(folder, torch.float32, "cpu")
    walk, count = BlockWalk(streamed, windows), streamed.num_blocks
    streams, reports, layers, norms = walk.start(), [], {}, {}
    for index in range(count):
        own = widths[index] if widths else {}
        plan = BlockPlan(index, count, quantization, tweak, torch.float16, training, seed, own)
        done = quantize_block(walk.load(index), streams, walk.runner(index), plan)
        streams, prefix = done.streams, streamed.block_prefix(index)
        layers |= {f"{prefix}.{name}": weight for name, weight in done.layers.items()}
        norms |= {f"{prefix}.{name}": master for name, master in done.norms.items()}
        reports.append(done.report)
    model = dense_model(folder, layers, norms, torch.float32, torch.float16, "cpu")
    if tune.enabled:
        windows_of_tune = TuningWindows.of(windows)
        expected = walked_targets(streamed, windows_of_tune)
        if tune.scales:
            put_scales(model, layers, torch.float16)
        args = (expected, windows_of_tune, tune, norms, torch.float16, seed)
        _, trained = final_tune(model, *args)
        put_tuned(model, trained, torch.float16)
    return model, reports
