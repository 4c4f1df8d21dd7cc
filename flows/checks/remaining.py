"""How much of what a run writes lies there already, so that going on with one needs no room for it.

Only what a run's own keys find is counted, which takes Prefect: asked where the room would not do.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.recipes.kinds import FINETUNE, QUANTIZE, kind_of
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
        kind = kind_of(recipe.model_dump())
        if kind is QUANTIZE:
            return quantize_shares(recipe, ready)
        done = _done(kind.name, recipe, ready)
        trained = float(done["training"] == 1)
        shares = {"data": done["data"], "checkpoints": trained, "trained weights": trained}
        if kind is FINETUNE:
            return shares | {"trained blocks": done.get("blocks", 0.0)}
        return shares | {"export, and the registry's copy": done["export"] / 2}

    return look


def has_results(root: Path) -> bool:
    """Tell whether runs of this process's state root have left finished stages there."""
    return root == state_root() and (root / "results").is_dir()


def quantize_shares(recipe: Any, ready: Any) -> Shares:
    """Return the shares of a quantization, and of one without a baseline and a registered copy."""
    done = _done(QUANTIZE.name, recipe, ready)
    chains = (done["blocks"] + done["baseline"]) / 2
    return {
        "calibration set": done["calibrate"],
        "streams (two boundaries of two streams)": float(chains == 1),
        "block results, with those of the baseline": chains,
        "export, and the registry's copy": done["export"] / 2,
        "widths on trial": done.get("trial", 0.0),
        "block results": done["blocks"],
        "exports": done["export"],
    }


def _done(kind: str, recipe: Any, ready: Any) -> Shares:
    # By name: it is the pipelines that are built upon the checks.
    pipeline = getattr(importlib.import_module(f"flows.{kind}"), kind.upper())
    return {stage.name: stage.cached / stage.parts for stage in pipeline.plan(recipe, ready)}
