"""Reports of trainings as values, for tests of what is made of them."""

from pathlib import Path

from flows.finetune_recipe import parse_finetune_recipe
from flows.finetune_report import FinetuneReports
from flows.ternary_recipe import parse_ternary_recipe
from flows.ternary_report import TernaryReports
from normtweak_core.finetune.source import ExportSource
from tasks.finetune_blocks import TrainedBlockResult
from tests.flows.test_report import METRICS, QUALITY

STEPS = 12
LOSSES = [2.0 - 0.125 * step for step in range(STEPS)]


def ternary_reports(folder: Path, **recipe) -> TernaryReports:
    values = {"name": "tiny-ternary", "ternary": {"steps": STEPS, "batch": 2}}
    return TernaryReports(
        recipe=parse_ternary_recipe(values | recipe),
        num_blocks=3,
        cuts={
            "float": 1.5,
            "norms_without_care": 6.25,
            "norms": 1.5,
            "step_0": 1.5,
            "ternary": 8.0,
        },
        losses=LOSSES,
        held_out={6: 2.25, 12: 1.875},
        tokens=6144,
        quality=QUALITY,
        metrics=METRICS,
        origin={"source_model": "reference:llama", "export_sha256": "e" * 64},
        export=folder,
        float_bytes=1_054_976,
    )


def finetune_reports(folder: Path, block_steps: int = 4) -> FinetuneReports:
    recipe = parse_finetune_recipe(
        {
            "name": "tiny-tuned",
            "model": {"source": str(folder)},
            "finetune": {"steps": STEPS, "batch": 2, "block_steps": block_steps},
        }
    )
    blocks = [
        TrainedBlockResult.model_construct(
            block=index,
            distance_before=0.5 - 0.125 * index,
            distance_after=0.25 + 0.25 * index,
            accepted=index == 0,
            seconds=1.0,
        )
        for index in range(2 if block_steps else 0)
    ]
    start = METRICS | {"perplexity/quantized": 8.0, "kl/mean": 0.5, "size_bytes": 190_000.0}
    return FinetuneReports(
        recipe=recipe,
        losses=LOSSES,
        held_out={12: 0.25},
        tokens=6144,
        quality=QUALITY,
        metrics=METRICS,
        origin={"source_model": "reference:llama", "export_sha256": "e" * 64},
        export=folder,
        float_bytes=1_054_976,
        source=ExportSource(
            folder=folder, format="compressed-tensors", dtype="float16", bits=2, group_size=32,
            symmetric=False, levels="full", payload_sha256="a" * 64, float_name="reference:llama",
            float_revision=None, float_sha256="b" * 64,
        ),
        blocks=blocks,
        start=start,
    )  # fmt: skip
