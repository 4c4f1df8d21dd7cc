"""How much of what a run writes lies there already, so that going on with one needs no room for it.

Only what a run's own keys find is counted, which takes Prefect: asked where the room would not do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from tasks.engine.environment import state_root

Shares = dict[str, float]  # by what is written: the share of its bytes that is there, 0 to 1


def shares_there(recipe: Any, ready: Any, root: Path) -> Callable[[], Shares]:
    """Return a function that looks at the finished stages of a run.

    Args:
        recipe: Of quantize, ternary or finetune.
        ready: What was found out about it.
        root: Where it would write; of another state root than that of this process nothing is told.
    """

    def look() -> Shares:
        if not has_results(root):
            return {}
        from tasks.models.job import open_job

        if isinstance(recipe, Recipe):
            return quantize_shares(recipe, open_job(recipe.model, recipe.seed))
        from flows.pipeline.planned import finetune_stages, ternary_stages

        if isinstance(recipe, TernaryRecipe):
            done = _done(ternary_stages(recipe, open_job(recipe.model, recipe.seed)))
            return {
                "data": done["data"],
                "checkpoints": float(done["training"] == 1),
                "trained weights": float(done["training"] == 1),
                "export, and the registry's copy": done["export"] / 2,
            }
        job = open_job(ready.float_model, recipe.seed)
        done = _done(finetune_stages(recipe, ready.export, job))
        return {
            "data": done["data"],
            "trained blocks": done.get("blocks", 0.0),
            "checkpoints": float(done["training"] == 1),
            "trained weights": float(done["training"] == 1),
        }

    return look


def has_results(root: Path) -> bool:
    """Tell whether runs of this process's state root have left finished stages there."""
    return root == state_root() and (root / "results").is_dir()


def quantize_shares(recipe: Recipe, job: Any) -> Shares:
    """Return the shares of a quantization, and of one without a baseline and a registered copy."""
    from flows.pipeline.planned import quantize_stages

    done = _done(quantize_stages(recipe, job))
    chains = (done["blocks"] + done["baseline"]) / 2
    return {
        "calibration set": done["calibrate"],
        "streams (two boundaries of two streams)": float(chains == 1),
        "block results, with those of the baseline": chains,
        "export, and the registry's copy": done["export"] / 2,
        "block results": done["blocks"],
        "exports": done["export"],
    }


def _done(stages: list[Any]) -> Shares:
    return {stage.name: stage.cached / stage.parts for stage in stages}
