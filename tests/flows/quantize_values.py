"""Reports of a quantization as values, for tests of what is made of them."""

from pathlib import Path

import numpy

from flows.recipes.quantize import Recipe
from flows.reports.quantize import Reports
from normtweak_core.evaluate.channel_drift import ChannelDrift
from normtweak_core.quantization.report import BlockReport, LayerReport
from normtweak_core.tweak.report import FinalTuneReport, TweakReport
from tasks.results import FloatType

METRICS = {
    "perplexity/float": 4.46,
    "perplexity/float_stderr": 0.2,
    "perplexity/quantized": 5.997,
    "perplexity/quantized_stderr": 0.26,
    "perplexity/ratio": 1.3445,
    "perplexity/ratio_stderr": 0.026,
    "nll/float": 1.495,
    "nll/float_stderr": 0.045,
    "nll/quantized": 1.791,
    "nll/quantized_stderr": 0.043,
    "nll_difference/mean": 0.296,
    "nll_difference/stderr": 0.0197,
    "kl/mean": 0.3431,
    "kl/stderr": 0.0139,
    "kl_reverse/mean": 0.3127,
    "kl_reverse/stderr": 0.0118,
    "top1_agreement": 0.7096,
    "top1_agreement_stderr": 0.0096,
    "tokens": 4064.0,
    "windows": 32.0,
    "size_bytes": 197916.0,
    "bits_per_weight": 3.3121,
}

QUALITY = {
    "source": "generated",
    "samples": 64,
    "length": 256,
    "token_coverage": 0.324,
    "distinct_in_window": {"1": 0.7, "2": 0.9, "3": 0.95, "4": 0.984},
    "distinct_in_set": {"1": 0.16, "2": 0.7, "3": 0.88, "4": 0.948},
    "repetitive_windows": 0.125,
    "duplicate_windows": 3,
    "scripts": {"latin": 0.98, "greek": 0.02},
    "mean_nll": 1.735,
    "verdict": "warning",
    "reasons": ["3 windows are copies of another"],
}


def block(index: int, accepted: bool | None = True, drift: float = 0.2, **layer) -> BlockReport:
    facts = {
        "layer": "mlp.up_proj",
        "bits": 3,
        "percdamp": 0.01,
        "damping_raised": False,
        "ridge": 0.02,
        "ridge_raised": False,
        "dead_columns": 0,
        "weight_error": 0.25,
        "output_error": 0.125,
    }
    tweak = TweakReport(
        lr=1e-3,
        held_out_before=0.02,
        held_out_after=0.01,
        distance_before=0.5,
        distance_after=0.4,
        share=float(bool(accepted)),
        accepted=bool(accepted),
    )
    return BlockReport(
        block=index,
        layers=[
            LayerReport(**facts | layer),
            LayerReport(**facts | layer | {"layer": "mlp.down_proj"}),
        ],
        left_float=[],
        tweak=None if accepted is None else tweak,
        drift_quantized=drift,
        drift_tweaked=drift * 0.9,
        mean_shift_quantized=0.01,
        mean_shift_tweaked=0.005,
    )


def channel_drift(num_blocks: int, final_tune: bool) -> dict[str, ChannelDrift]:
    draw = numpy.random.default_rng(0).random
    names = ["round to nearest", "quantized", "norm tweak", *["final tune"] * final_tune]
    return {
        name: ChannelDrift(*(draw((num_blocks, 8)) for _ in range(4)), 1 + draw((num_blocks, 8)))
        for name in names
    }


def reports(folder: Path, blocks=None, final_tune=True, metrics=None, **recipe) -> Reports:
    folder.mkdir(exist_ok=True)
    blocks = blocks or [block(0), block(1, accepted=False, drift=0.3)]
    return Reports(
        recipe=Recipe.parse({"name": "Tiny.llama_w3", "quantization": {"bits": 3}} | recipe),
        blocks=blocks,
        baseline=[block(one.block, accepted=None, drift=0.5) for one in blocks],
        final_tune=FinalTuneReport(held_out_before=0.5, held_out_after=0.4, accepted=True)
        if final_tune
        else None,
        drift=channel_drift(len(blocks), final_tune),
        quality=QUALITY,
        metrics=metrics or METRICS,
        origin={"source_model": "reference:llama", "export_sha256": "e" * 64},
        export=folder,
        float_type=FloatType(dtype="bfloat16", refused={"float16": "logits reach 7e4"}),
        float_bytes=1_054_976,
    )
