"""The export that a fine-tuning starts from, known by its manifest; no torch here."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from normtweak_core.errors import InputError
from normtweak_core.export.folder import MANIFEST
from normtweak_core.export.verification.verify import read_manifest
from normtweak_core.model.architecture import read_config
from normtweak_core.model.config import ModelConfig
from normtweak_core.quantization.config import MixedBits, QuantizationConfig

_REFUSAL = re.compile(r"(?:^|; )(float16|bfloat16|float32): ")
GRID = ("bits", "group_size", "symmetric", "levels", "activation_bits")


@dataclass(frozen=True)
class ExportSource:
    """What an export says about itself."""

    folder: Path
    format: str
    dtype: str
    bits: int | MixedBits
    group_size: int | None
    symmetric: bool
    levels: Literal["full", "ternary", "binary"]
    payload_sha256: str
    float_name: str  # what the recipe of the export called the float model
    float_revision: str | None
    float_sha256: str
    activation_bits: int | None = None  # of what its linears read
    refused: dict[str, str] = field(default_factory=dict)  # float types passed over for dtype: why

    @property
    def quantization(self) -> QuantizationConfig:
        """The width and grid of the export, as the recipe of the main job names them."""
        return QuantizationConfig(**{key: getattr(self, key) for key in GRID})

    def float_model(self, model: ModelConfig, moved_to: str | None) -> ModelConfig:
        """Return where the float model is, in the arithmetic of a recipe.

        Args:
            model: The recipe's section, whose source is the export.
            moved_to: Where the recipe says it is; None: where it was.
        """
        place = {"source": self.float_name, "revision": self.float_revision}
        if moved_to is not None:
            place = {"source": moved_to, "revision": None}
        return model.model_copy(update=place)


def read_export_source(folder: Path) -> ExportSource:
    """Return what the manifest of an export says.

    Raises:
        InputError: The folder is no export, or one without a grid or a lineage.
        VerificationError: Its manifest is damaged.
    """
    if not folder.is_dir():
        raise InputError(
            f"model.source must be the folder of an export, for normtweak finetune; {folder} is "
            "none: give the folder that normtweak quantize has printed."
        )
    if not (folder / MANIFEST).is_file() and is_quantized(folder):
        raise InputError(
            "must be an export of normtweak",
            key="model.source",
            found=f"{folder} was quantized by another tool",
            remedy="take its codes over with normtweak quantize and base, and train that export",
        )
    manifest = read_manifest(folder)
    export: dict[str, Any] = manifest["export"]
    if export["format"] == "bitnet":
        raise InputError(
            f"model.source must be an export of normtweak quantize, whose weights lie on a grid; "
            f"{folder} is a ternary model in the bitnet format: train on with normtweak ternary."
        )
    if export.get("act_order"):
        raise InputError(
            "must be an export whose groups hold columns that follow each other",
            key="model.source",
            found=f"{folder} has the sorted columns of another tool's checkpoint (g_idx)",
            remedy="train an export with plain groups",
        )
    lineage = manifest.get("lineage")
    if not lineage:
        raise InputError(
            f"model.source must be an export whose manifest names its float model; that of "
            f"{folder} has no lineage: export it with normtweak quantize."
        )
    asked = manifest.get("recipe", {}).get("quantization", {})
    return ExportSource(
        folder=folder.resolve(),
        format=export["format"],
        dtype=export["dtype"],
        bits=MixedBits(**asked["bits"]) if "widths" in export else export["bits"],
        group_size=export["group_size"],
        symmetric=export["symmetric"],
        levels=asked.get("levels", "full"),
        payload_sha256=manifest["payload_sha256"],
        float_name=lineage["source_model"],
        float_revision=lineage["source_revision"] or None,
        float_sha256=lineage["source_sha256"],
        activation_bits=export.get("activation_bits"),
        refused=recorded_refusals(lineage.get("float_types_refused", "")),
    )


def is_quantized(folder: Path) -> bool:
    """Say whether a folder holds a model that is quantized, by whomever."""
    described = (folder / "config.json").is_file()
    return described and bool(read_config(folder).get("quantization_config"))


def recorded_refusals(text: str) -> dict[str, str]:
    """Return why float types were passed over, by name, from what a lineage says of them."""
    parts = _REFUSAL.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
