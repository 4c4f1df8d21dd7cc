"""The recipe that a command means: a file, or a model and a few options."""

import argparse
import re
from pathlib import Path
from typing import Any

import yaml

from flows.commands.command import GivenPath, add_overrides
from flows.recipes.file import apply_override, parse_yaml, read_with_overrides
from normtweak_core.effort import EFFORTS
from normtweak_core.errors import InputError
from normtweak_core.given_files import read_utf8
from normtweak_core.paths import given_path, shown

# What says something of a model, by the name that it is kept under.
OF_A_MODEL = {
    "group_size": "--group-size",
    "effort": "--effort",
    "calibration": "--calibration",
    "save_recipe": "--save-recipe",
}
CHANNEL = "channel"  # --group-size: one scale a row
FIX = "correct it."


def add_recipe_or_model(parser: argparse.ArgumentParser) -> None:
    """Take a recipe and changes to it, or a model and what is to become of it."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE|MODEL",
        help="YAML file, see conf/; or, with --bits, a folder, a hub id or reference:NAME",
    )
    add_overrides(parser, "KEY=VALUE", "change one key of the recipe, such as quantization.bits=3")
    group = parser.add_argument_group("a model without a recipe")
    group.add_argument("--bits", metavar="N", help="2, 3, 4 or 8; or an average such as 2.5")
    group.add_argument(
        "--group-size",
        metavar="N",
        help=f"weights that share a scale, {CHANNEL} for those of a whole row; else 128",
    )
    group.add_argument("--effort", choices=EFFORTS, help="how much work is put in; else standard")
    group.add_argument(
        "--calibration",
        action=GivenPath,
        metavar="FILE",
        help=".txt or .jsonl to calibrate on; else the model writes a text itself",
    )
    group.add_argument(
        "--save-recipe", action=GivenPath, metavar="FILE.yaml", help="keep the recipe this means"
    )


def meant_recipe(options: argparse.Namespace) -> tuple[dict[str, Any], str | None]:
    """Return the keys and values that are meant, and as YAML what no file holds.

    Raises:
        InputError: The recipe cannot be read, options of a model stand beside a recipe, or the
            recipe is to be kept where something else lies.
    """
    if getattr(options, "bits", None) is None:
        for name, option in OF_A_MODEL.items():
            if getattr(options, name, None) is not None:
                raise InputError(
                    f"{option} is read where --bits names a width for a model; found none: add "
                    "--bits, or change the recipe with --set KEY=VALUE."
                )
        return read_with_overrides(_recipe_file(options.recipe), options.overrides), None
    values = _of_model(options)
    for override in options.overrides:
        apply_override(values, override)
    text = yaml.safe_dump(values, sort_keys=False)
    if options.save_recipe is not None:
        _keep(text, options.save_recipe)
    return values, text


def meaning(text: str | None) -> list[str]:
    """Return what to say of a recipe that no file holds."""
    if text is None:
        return []
    return ["recipe", *(f"  {line}" for line in text.splitlines())]


def _recipe_file(given: str) -> Path:
    path = given_path(given, "RECIPE")
    if not path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise InputError(
            f"the recipe must be a YAML file; {shown(given)} is none: check the path, or say the "
            f"width that a model is to have, such as `normtweak quantize {given} --bits 4`."
        )
    return path


def _of_model(options: argparse.Namespace) -> dict[str, Any]:
    model = options.recipe
    if Path(model).suffix in (".yaml", ".yml"):
        raise InputError(
            f"--bits is for a model without a recipe; found the recipe {shown(model)}: change it "
            f"with --set quantization.bits={options.bits}."
        )
    bits = parse_yaml(options.bits, f"--bits must be a number; {shown(options.bits)} is none", FIX)
    size = options.group_size
    quantization: dict[str, Any] = {"bits": {"average": bits} if _is_between(bits) else bits}
    if size is not None:
        refusal = f"--group-size must be a number or {CHANNEL}; {shown(size)} is neither"
        quantization["group_size"] = None if size == CHANNEL else parse_yaml(size, refusal, FIX)
    values: dict[str, Any] = {
        "name": _name(model, options.bits, size),
        "model": {"source": model},
        "quantization": quantization,
    }
    if options.effort is not None:
        values["effort"] = options.effort
    if options.calibration is not None:
        values["calibration"] = {"source": "text", "path": str(options.calibration)}
    return values


def _is_between(bits: Any) -> bool:
    return isinstance(bits, float) and not bits.is_integer()


def _name(model: str, bits: str, size: str | None) -> str:
    """Return what the versions are registered as: the last word of the model, and the grid."""
    last = re.split(r"[/:\\]", model.rstrip("/\\"))[-1] or "model"
    grid = f"w{bits}" + ("" if size is None else size if size == CHANNEL else f"g{size}")
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{last}-{grid}").lstrip("._-")


def _keep(text: str, path: Path) -> None:
    if path.exists() and (not path.is_file() or read_utf8(path, "--save-recipe") != text):
        raise InputError(
            f"--save-recipe must name a new file; {path} holds something else: name another."
        )
    if not path.parent.is_dir():
        raise InputError(
            f"--save-recipe must lie in a folder that is there; {path.parent} is none: make it."
        )
    path.write_text(text)
