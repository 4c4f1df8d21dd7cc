"""Everything that can be known to be wrong with an ablation before it starts."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from flows.checks.given_texts import read_text
from flows.checks.inputs import Ready, check_inputs, check_machine
from flows.checks.known_tokens import check_tokens
from flows.checks.limits import check_disk_limit, check_memory
from flows.checks.machine import FIXED_DISK, disk_bytes
from flows.checks.memory import memory_bytes
from flows.checks.remaining import Shares, has_results, quantize_shares
from flows.recipes.ablation import AblationRecipe, planned_cells
from flows.recipes.file import recipe_sha256
from flows.recipes.quantize import Recipe
from normtweak_core.errors import InputError
from normtweak_core.export.formats.checks import check_exportable, refuse_experts
from normtweak_core.export.gguf.grid_checks import check_grid_exportable
from normtweak_core.model.architecture import read_config
from normtweak_core.model.source import REFERENCE_PREFIX
from normtweak_core.paths import given_path

TRAINING_TEXT = "training text of a reference model"  # stands for a path that is not known yet
CALIBRATION, STREAMS = "calibration set", "streams (two boundaries of two streams)"
# Of a run of quantize; a cell has neither a baseline nor a copy in the registry.
TWICE = {
    "block results": "block results, with those of the baseline",
    "exports": "export, and the registry's copy",
}


def preflight(recipe: AblationRecipe, root: Path, result: Path | None = None) -> Ready:
    """Accept an ablation all of whose cells this machine can carry out.

    Raises:
        InputError: As `preflight`, of any cell, or there is no text for the calibration study.
    """
    found = check_inputs(recipe.model, recipe.calibration, recipe.evaluation, root, result)
    warnings = list(found.warnings)
    if recipe.needs_training_text and not found.source.name.startswith(REFERENCE_PREFIX):
        raise InputError(
            "ablation.text is required for the value text of ablation.studies.calibration; found "
            f"none for {found.source.name}: give a .txt or .jsonl file, or leave out text."
        )
    if recipe.ablation.text is not None:
        warnings += _check_text(recipe.ablation.text, recipe)
        text = given_path(recipe.ablation.text, "ablation.text")
        check_tokens(found.source.path, None, None, more=[text])
    cells = distinct_recipes(recipe, TRAINING_TEXT)
    for cell in cells:
        # Nothing of a cell is verified by a reader of its format, only read back by us.
        if cell.block_training.enabled:
            refuse_experts(found.shape.linears, "block_training")
        check_exportable(cell.export, cell.quantization, found.shape.linears, reader_available=True)
        model = read_config(found.source.path)
        check_grid_exportable(cell.export, cell.quantization, model, found.shape.linears)
    ready = replace(found, warnings=warnings)
    disk = _disk(cells, ready)
    check_disk_limit(recipe, disk)
    needs = partial(memory_bytes, shape=found.shape, length=found.length)
    for cell in cells:
        check_memory(cell, "quantize", "calibration", needs)
    there = partial(_there, recipe, cells, ready, root)
    return check_machine(ready, disk, recipe.model, root, there)


def distinct_recipes(recipe: AblationRecipe, training_text: str) -> list[Recipe]:
    """Return every recipe that is to be carried out, once."""
    planned = (cell.recipe for cell in planned_cells(recipe, training_text))
    return list({recipe_sha256(one): one for one in planned}.values())


def _check_text(text: str, recipe: AblationRecipe) -> list[str]:
    path = read_text(text, "ablation.text")
    measured = recipe.evaluation.perplexity.path
    if measured is None:
        return []
    if path.resolve() == given_path(measured, "evaluation.perplexity.path").resolve():
        return [
            "ablation.text and evaluation.perplexity.path are the same file: the perplexity of a "
            "cell is measured on text that it was calibrated with"
        ]
    return []


def _there(recipe: AblationRecipe, cells: list[Recipe], found: Ready, root: Path) -> Shares:
    """Return the share of each part that lies there already."""
    if not has_results(root):
        return {}
    disk = _disk(cells, found)
    there: Counter[str] = Counter()
    for cell in cells:
        part = disk_bytes(cell, found.shape, found.length)
        shares = quantize_shares(cell, found)
        for name, twice in TWICE.items():
            there[name] += part[twice] // 2 * shares[name]
        there["calibration sets"] += part[CALIBRATION] * shares[CALIBRATION]
    return {name: size / disk[name] for name, size in there.items()}


def _disk(cells: list[Recipe], found: Ready) -> dict[str, int]:
    """Return what all cells write at most, as if they shared no stage."""
    parts = [disk_bytes(cell, found.shape, found.length) for cell in cells]
    total = {name: sum(part[twice] // 2 for part in parts) for name, twice in TWICE.items()}
    total["calibration sets"] = sum(part[CALIBRATION] for part in parts)
    total["streams"] = max(part[STREAMS] for part in parts)  # dropped where a chain ends
    return total | {"databases, logs and reports": FIXED_DISK}
