"""The checkpoint that a recipe starts from, known by its headers: whether it fits; no torch."""

import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from normtweak_core.errors import InputError, keys_called
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.foreign.config import GRID
from normtweak_core.export.foreign.layouts import read_packing
from normtweak_core.export.foreign.linears import PackedLinear, packed_linears
from normtweak_core.export.formats.checks import LinearShape
from normtweak_core.export.origin import Origin, SourceCard
from normtweak_core.model.architecture import read_config
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.hub import is_hub_id
from normtweak_core.model.source import ModelFolder, resolve_source
from normtweak_core.paths import given_path
from normtweak_core.quantization.config import QuantizationConfig

Recipe = TypeVar("Recipe", bound=BaseModel)  # with a section `quantization`


@dataclass(frozen=True)
class BaseSource:
    """What a checkpoint says about itself."""

    source: ModelFolder
    method: str  # as config.json calls it
    bits: int
    group_size: int | None
    symmetric: bool
    act_order: bool  # whether columns of a group need not follow each other
    quantized_by: str  # the tool, as far as the files tell
    license: str  # as its model card says; empty: it says none

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.source.path

    def gridded(self, recipe: Recipe) -> Recipe:
        """Return a recipe whose quantization has the grid of the checkpoint.

        Raises:
            InputError: The recipe says something else.
        """
        asked: QuantizationConfig = recipe.quantization
        for key in GRID:
            found, wanted = getattr(self, key), getattr(asked, key)
            if key in asked.model_fields_set and wanted != found:
                raise InputError(
                    f"must be that of base, {_shown(found)}",
                    key=f"quantization.{key}",
                    found=f"found {_shown(wanted)}",
                    remedy="leave it out",
                )
        grid = asked.model_copy(update={key: getattr(self, key) for key in GRID})
        return recipe.model_copy(update={"quantization": grid})

    def origin(self, float_name: str) -> Origin:
        """Return what a model card says of it."""
        return Origin(float_name, self.source.name, self.quantized_by, self.license)

    def facts(self) -> dict[str, str]:
        """Return where the codes come from, as a manifest and the registry keep it."""
        return {
            "base": self.source.name,
            "base_revision": self.source.revision or "",
            "quantized_by": self.quantized_by,
            "base_license": self.license or "not told",
        }


def require_order(export: ExportConfig, base: BaseSource) -> None:
    """Accept a format that holds the order of the columns of a checkpoint.

    Raises:
        InputError: It does not: compressed-tensors reads no g_idx since 0.19.
    """
    if base.act_order and export.format != "gptq":
        raise InputError(
            "must be gptq for a base whose groups hold columns in another order (g_idx)",
            key="export.format",
            found=f"it is {export.format}, which has no place for the order of {base.folder}",
            remedy="set it to gptq",
        )


def read_base(base: str) -> BaseSource:
    """Return what the checkpoint says that a recipe names, fetched first if it is a hub id.

    Raises:
        InputError: There is none, it is in no layout that is read here, or its linears differ in
            width or groups.
    """
    name, _, revision = base.partition("@")
    if given_path(base, "base").exists() or not is_hub_id(name):
        name, revision = base, ""
    with keys_called({"model.source": "base", "model.revision": "base"}):
        source = resolve_source(ModelConfig(source=name, revision=revision or None))
    packing = read_packing(source.path)
    linears = packed_linears(source.path, packing)
    first = next(iter(linears.values()))
    for one in linears.values():
        if (one.bits, one.group_size) != (first.bits, first.group_size):
            raise InputError(
                "must have one width and one group size for all linears, as an export has",
                key="base",
                found=f"in {source.path} {_of(first)} and {_of(one)}",
                remedy="give an export of one width",
            )
    return BaseSource(
        source=source,
        method=packing.method,
        bits=first.bits,
        group_size=first.group_size,
        symmetric=all(one.symmetric for one in linears.values()),
        act_order=any(_sorted_columns(one) for one in linears.values()),
        quantized_by=_tool(read_config(source.path)["quantization_config"], source.path),
        license=SourceCard.of(source.path).license,
    )


def require_made_of(base: BaseSource, folder: Path, shapes: Mapping[str, LinearShape]) -> None:
    """Accept a checkpoint whose linears are those of the float model, as far as headers tell.

    Args:
        base: The checkpoint.
        folder: Of the float model.
        shapes: The linears of its blocks by their names in the files.

    Raises:
        InputError: One has another shape, or the checkpoint has other linears.
    """
    ours, theirs = read_config(folder), read_config(base.folder)
    if ours["model_type"] != theirs.get("model_type"):
        raise _other_model(base, f"a {ours['model_type']}", f"it is a {theirs.get('model_type')}")
    for one in packed_linears(base.folder, read_packing(base.folder)).values():
        wanted = next(
            (shapes[n] for n in shapes if n.endswith(one.name) or one.name.endswith(n)), None
        )
        if wanted is None:
            raise _other_model(base, "linears of blocks alone quantized", f"{one.name} is none")
        if (one.rows, one.columns) != (wanted.out_features, wanted.in_features):
            raise _other_model(
                base,
                f"{one.name} of {wanted.out_features} x {wanted.in_features}",
                f"there it is {one.rows} x {one.columns}",
            )


def _other_model(base: BaseSource, required: str, found: str) -> InputError:
    return InputError(
        f"must be made from the float model, with {required}",
        key="base",
        found=f"in {base.folder} {found}",
        remedy="give an export of this model, or the model of this export",
    )


def _sorted_columns(linear: PackedLinear) -> bool:
    place = linear.parts.get("g_idx") or linear.parts.get("weight_g_idx")
    if place is None or linear.group_size is None:
        return False
    groups = array.array("i")
    with place.file.open("rb") as file:
        file.seek(place.start)
        groups.frombytes(file.read(place.end - place.start))
    return any(group != column // linear.group_size for column, group in enumerate(groups))


def _tool(config: dict[str, Any], folder: Path) -> str:
    """Return which tool has quantized a model, with its version where the files tell."""
    told = (config.get("meta") or {}).get("quantizer") or config.get("quantizer")
    if told:
        return ", ".join(told) if isinstance(told, list) else str(told)
    if version := config.get("autoround_version"):
        return f"auto-round {version}"
    if provider := config.get("provider"):
        return str(provider)
    if (folder / "normtweak.json").is_file():
        return "normtweak"
    if config.get("quant_method") == "compressed-tensors":
        made_by = "llm-compressor" if (folder / "recipe.yaml").is_file() else "not told"
        return f"{made_by} (compressed-tensors {config.get('version', 'of unknown version')})"
    return "not told"


def _of(linear: PackedLinear) -> str:
    groups = f"groups of {linear.group_size}" if linear.group_size else "one scale a row"
    return f"{linear.name} has {linear.bits} bits ({groups})"


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower()
