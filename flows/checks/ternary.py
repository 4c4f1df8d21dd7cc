"""What can be known to be wrong with a ternary recipe before a server starts."""

from pathlib import Path

from flows.checks.inputs import Ready, check_inputs, check_machine
from flows.checks.machine import FIXED_DISK, ModelShape
from flows.checks.remaining import shares_there
from flows.recipes.ternary import TernaryRecipe
from normtweak_core.export.formats.checks import check_ternary_exportable


def ternary_preflight(
    recipe: TernaryRecipe, root: Path, result: Path | None = None, evaluates: bool = True
) -> Ready:
    """Accept a ternary recipe that this machine can carry out, in order of rising cost.

    Args:
        recipe: What is wanted.
        root: The state root; it need not exist yet.
        result: Where the result file shall go, if anywhere.
        evaluates: Whether the text to measure on is needed.

    Raises:
        InputError: A folder cannot be written, a text is missing, empty or malformed, the model is
            unsuitable, bitnet cannot hold it, or the disk is too small.
    """
    found = check_inputs(
        recipe.model,
        recipe.ternary.data,
        recipe.evaluation if evaluates else None,
        root,
        result,
        "ternary.data",
    )
    check_ternary_exportable(recipe.export, found.shape.linears)
    disk = _disk_bytes(recipe, found.shape, found.length)
    return check_machine(found, disk, recipe.model, root, shares_there(recipe, found, root))


def _disk_bytes(recipe: TernaryRecipe, shape: ModelShape, length: int) -> dict[str, int]:
    export = shape.linear_weights // 4 + (shape.parameters - shape.linear_weights) * 4
    return {
        "data": recipe.ternary.data.samples * length * 16,
        # Weights and two moments in float32; two checkpoints, and a third while it is written.
        "checkpoints": 3 * 12 * shape.parameters,
        "trained weights": shape.parameters * 4,
        "export, and the registry's copy": 2 * export,
        "databases, logs and reports": FIXED_DISK,
    }
