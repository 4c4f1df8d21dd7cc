"""Reports as values, for tests of what is made of them."""

import math
from pathlib import Path

from flows.recipes.ablation import AblationRecipe, planned_cells
from flows.recipes.file import recipe_sha256
from flows.recipes.finetune import FinetuneRecipe
from flows.recipes.polynomial import PolynomialRecipe
from flows.recipes.ternary import TernaryRecipe
from flows.reports.ablation import Ablation
from flows.reports.ablation import Cell as AblationCell
from flows.reports.finetune import FinetuneReports
from flows.reports.polynomial import Study, StudyCell
from flows.reports.ternary import TernaryReports
from normtweak_core.finetune.source import ExportSource
from normtweak_core.polynomial.config import EXAMPLES, cells_of
from tasks.results import FloatType
from tasks.stages.training.finetune_blocks import TrainedBlockResult
from tests.flows.quantize_values import METRICS, QUALITY

STEPS = 12
LOSSES = [2.0 - 0.125 * step for step in range(STEPS)]


def ternary_reports(folder: Path, **recipe) -> TernaryReports:
    values = {"name": "tiny-ternary", "ternary": {"steps": STEPS, "batch": 2}}
    return TernaryReports(
        recipe=TernaryRecipe.parse(values | recipe),
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
        objective={0: 3.5, 6: 0.75, 12: 0.5},
        best=12,
        tokens=6144,
        quality=QUALITY,
        metrics=METRICS,
        origin={"source_model": "reference:llama", "export_sha256": "e" * 64},
        export=folder,
        float_type=FloatType(dtype="float16"),
        float_bytes=1_054_976,
    )


def finetune_reports(folder: Path, block_steps: int = 4) -> FinetuneReports:
    recipe = FinetuneRecipe.parse(
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
        held_out={0: 0.5, 12: 0.25},
        best=12,
        tokens=6144,
        quality=QUALITY,
        metrics=METRICS,
        origin={"source_model": "reference:llama", "export_sha256": "e" * 64},
        export=folder,
        float_type=FloatType(dtype="float16"),
        float_bytes=1_054_976,
        source=ExportSource(
            folder=folder, format="compressed-tensors", dtype="float16", bits=2, group_size=32,
            symmetric=False, levels="full", payload_sha256="a" * 64, float_name="reference:llama",
            float_revision=None, float_sha256="b" * 64,
        ),
        blocks=blocks,
        start=start,
    )  # fmt: skip


def ablation() -> Ablation:
    """Return all studies of the defaults; the numbers follow from the place of a cell."""
    recipe = AblationRecipe.parse({"name": "tiny-ablation"})
    cells = []
    for place, planned in enumerate(planned_cells(recipe, "corpus.txt")):
        kl = 0.03 + 0.001 * place
        metrics = {
            "perplexity/float": 10.0,
            "perplexity/quantized": 10.0 * math.exp(kl),
            "perplexity/ratio": math.exp(kl),
            "kl/mean": kl,
            "top1_agreement": 1 - kl,
            "bits_per_weight": 2.25,
            "tokens": 4096.0,
        }
        cells.append(
            AblationCell(
                study=planned.study,
                value=planned.value,
                recipe=planned.recipe,
                recipe_sha256=recipe_sha256(planned.recipe),
                export_sha256="e" * 64,
                metrics=metrics,
                seconds=40.0 + place,
                blocks=6,
                tweaks_kept=place % 7,
                final_tune="off",
                problems=["block 2: layer left in float"] * (place % 3),
                cached=False,
            )
        )
    return Ablation(recipe, "reference:llama", cells)


def polynomial_study() -> Study:
    """Return every cell of the defaults; the numbers follow from the place of a cell."""
    recipe = PolynomialRecipe.parse({"name": "tiny-study"})
    fits = [[0.01 * number] * 200 for number in range(EXAMPLES)]
    cells = [
        StudyCell(
            cell,
            {
                "curve": [(0, 0.5 + 0.01 * place), (100, 0.1 + 0.01 * place)],
                "test_loss": 0.1 + 0.01 * place,
                "examples_before": fits,
                "examples_after": fits,
            },
            "a" * 64,
            1.0,
        )
        for place, cell in enumerate(cells_of(recipe.grid, recipe.lora))
    ]
    trained = {"curve": [(0, 0.5), (400, 0.05)], "test_loss": 0.05, "examples_after": fits}
    return Study(recipe, trained, "b" * 64, cells)
