"""A model quantized block by block on the bare core, for studies of many settings."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears, set_linear_weight
from normtweak_core.quantization.block import quantize_block
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.report import BlockReport
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.tweak.config import NormTweakConfig


def quantized_model(
    folder: Path, windows: torch.Tensor, quantization: QuantizationConfig, tweak: NormTweakConfig
) -> tuple[PreTrainedModel, list[BlockReport]]:
    """Return the model of a folder as its export would be in float16, and what its blocks tell."""
    streamed = StreamedModel(folder, torch.float32, "cpu")
    walk, model = BlockWalk(streamed, windows), load_causal_lm(folder, torch.float32, "cpu")
    streams, reports = walk.start(), []
    for index in range(walk.num_blocks):
        plan = BlockPlan(index, walk.num_blocks, quantization, tweak, torch.float16)
        done = quantize_block(walk.load(index), streams, walk.runner(index), plan)
        streams = done.streams
        block = model.get_submodule(streamed.block_prefix(index))
        linears = find_linears(block)
        for name, weight in done.layers.items():
            set_linear_weight(linears[name], weight.dequantize())
        for name, master in done.norms.items():
            block.get_parameter(name).data = master.half().float()
        reports.append(done.report)
    return model, reports
