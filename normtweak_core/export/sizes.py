"""Whether an export is as large as widths and shapes say, and what became of every linear."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from normtweak_core.errors import VerificationError
from normtweak_core.experts.stacked import find_routers, find_stacks
from normtweak_core.export.formats.bitnet import ROWS_PER_BYTE
from normtweak_core.export.formats.stored_bytes import FLOAT_BYTES, linear_bytes
from normtweak_core.export.gguf.size import GgufSize, gguf_size
from normtweak_core.export.verification.verify import read_manifest
from normtweak_core.model.checkpoint import stored_tensors
from normtweak_core.model.skeleton import build_skeleton
from normtweak_core.model.structure import find_blocks, find_linears, find_norms, linear_weight

NO_MATRIX = 1024  # numbers: below that, equal tensors are equal by chance, such as norms of ones


@dataclass(frozen=True)
class SizeCheck:
    """What an export holds beside what it should hold."""

    stored_bytes: int  # of all tensors
    predicted_bytes: int  # from widths and shapes
    quantized: list[str]  # linears
    kept: dict[str, str]  # linears that stay in float, and why
    missing: list[str] = field(default_factory=list)  # linears that nothing is known of
    differing: list[str] = field(default_factory=list)  # tensors of another size, sentences
    twice: list[list[str]] = field(default_factory=list)  # names of equal matrices
    # What blocks hold in float beside linears, norms and biases, by name in the block: how often.
    beside: dict[str, int] = field(default_factory=dict)
    gguf: GgufSize | None = None  # of the file beside a grid, where there is one

    @property
    def linears(self) -> int:
        """How many linears the float model has."""
        return len(self.quantized) + len(self.kept) + len(self.missing)

    def in_words(self) -> str:
        """Return what became of the linears, in a line."""
        known = self.linears - len(self.missing)
        why: dict[str, int] = defaultdict(int)
        for reason in self.kept.values():
            why[reason] += 1
        reasons = "".join(f", {count} in float ({reason})" for reason, count in why.items())
        others = ", ".join(f"{count} {name}" for name, count in self.beside.items())
        return (
            f"{100 * known / self.linears:.4g} % of linears accounted for: "
            f"{len(self.quantized)} quantized{reasons}"
        ) + (f"; beside them in float: {others}" if others else "")

    def require_sound(self) -> None:
        """Return if all is as it should be.

        Raises:
            VerificationError: A tensor has another size than its width and shape say, or nothing is
                known of a linear.
        """
        if self.differing:
            raise VerificationError(
                f"the tensors of the export must take {self.predicted_bytes} bytes; they take "
                f"{self.stored_bytes}: {'; '.join(self.differing[:3])}. Export again."
            )
        if self.gguf is not None and self.gguf.differing:
            raise VerificationError(
                "the tensors of the GGUF file must be as large as their types say: "
                f"{'; '.join(self.gguf.differing[:3])}. Export again."
            )
        if self.missing:
            raise VerificationError(
                "every linear of the model must be in the export, quantized or in float; "
                f"{', '.join(self.missing[:3])} is not. Export again."
            )


def size_check(folder: Path, source: Path) -> SizeCheck:
    """Return what an export holds, from its manifest and the headers of its files alone.

    Args:
        folder: Of the export.
        source: Of the float model it was made from.
    """
    manifest, model = read_manifest(folder), build_skeleton(source, torch.float32)
    tensors: Mapping[str, Any] = manifest["tensors"]
    stored = {name: one.end - one.start for name, one in stored_tensors(folder).items()}
    predicted = _predicted(manifest, model, stored)
    quantized, kept, missing = _linears(model, tensors)
    return SizeCheck(
        sum(stored.values()),
        sum(predicted.values()),
        quantized,
        kept,
        missing,
        [
            f"{name} takes {stored.get(name, 0)} instead of {predicted.get(name, 0)}"
            for name in sorted(stored.keys() | predicted)
            if stored.get(name) != predicted.get(name)
        ],
        _twice(tensors),
        _beside(model, tensors),
        gguf_size(folder, manifest),
    )


def _predicted(
    manifest: Mapping[str, Any], model: PreTrainedModel, stored: Collection[str]
) -> dict[str, int]:
    """Return the bytes that every tensor should take, by its name."""
    export, linears = manifest["export"], find_linears(model)
    stacks = find_stacks(model)
    sizes: dict[str, int] = {}

    def add(linear: str, stored_as: str) -> None:
        rows, columns = linear_weight(linears[linear]).shape
        parts = _parts(export, stored_as, rows, columns)
        if f"{stored_as}.bias" in stored:
            parts["bias"] = rows * FLOAT_BYTES[export["dtype"]]
        sizes.update({f"{stored_as}.{part}": size for part, size in parts.items()})

    for name, entry in manifest["tensors"].items():
        stored_as = entry.get("stored", name)
        if "linears" in entry:
            for linear, one in zip(stacks[name], entry["linears"], strict=True):
                add(linear, one["stored"])
        elif entry["quantized"]:
            add(name.removesuffix(".weight"), stored_as.removesuffix(".weight"))
        else:
            sizes[stored_as] = prod(entry["shape"]) * FLOAT_BYTES[entry["dtype"]]
    return sizes


def _parts(export: Mapping[str, Any], linear: str, rows: int, columns: int) -> dict[str, int]:
    """Return the bytes of the tensors that stand for one quantized linear, as the formats say."""
    number = FLOAT_BYTES[export["dtype"]]
    if export["format"] == "bitnet":
        gains = {"rms_norm.weight": columns * number} if export["rms_norm"] else {}
        return {"weight": rows // ROWS_PER_BYTE * columns, "weight_scale": number} | gains
    grid = (export[key] for key in ("group_size", "symmetric", "dtype"))
    mixed = "widths" in export
    bits = export["widths"][linear] if mixed else export["bits"]
    block = export.get("block")
    return linear_bytes(export["format"], bits, *grid, rows, columns, mixed, block)


def _linears(
    model: PreTrainedModel, tensors: Mapping[str, Any]
) -> tuple[list[str], dict[str, str], list[str]]:
    """Return the quantized linears, those kept in float and why, and those that are not there."""
    blocks, tied = f"{find_blocks(model).prefix}.", model.all_tied_weights_keys
    inside = {name: stack for stack, names in find_stacks(model).items() for name in names}
    quantized, kept, missing = [], {}, []
    for name in find_linears(model):
        weight = inside.get(name, f"{name}.weight")
        if (entry := tensors.get(weight)) is not None and entry["quantized"]:
            quantized.append(name)
        elif weight in tied:
            kept[name] = "tied to the embedding"
        elif entry is None:
            missing.append(name)
        elif name.startswith(blocks):
            kept[name] = "no forward pass calls it"
        else:
            kept[name] = "outside the blocks"
    kept |= {name: "router" for name in find_routers(model)}
    return quantized, kept, missing


def _beside(model: PreTrainedModel, tensors: Mapping[str, Any]) -> dict[str, int]:
    """Return how many blocks hold what else, such as convolutions and the matrices of a state."""
    blocks, found = find_blocks(model), defaultdict[str, int](int)
    for index, block in enumerate(blocks.modules):
        known = {*find_linears(block), *find_norms(block), *find_routers(block)}
        for name, _ in block.named_parameters():
            module, _, last = name.rpartition(".")
            entry = tensors.get(f"{blocks.prefix}.{index}.{name}")
            if module not in known and last != "bias" and entry and not entry["quantized"]:
                found[name] += 1
    return dict(found)


def _twice(tensors: Mapping[str, Any]) -> list[list[str]]:
    """Return the names of matrices that are stored more than once with the same content."""
    alike: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, entry in tensors.items():
        if len(entry["shape"]) > 1 and prod(entry["shape"]) >= NO_MATRIX:
            content = entry["sha256"], entry.get("scales_sha256"), *entry["shape"]
            alike[content].append(name)
    return [names for names in alike.values() if len(names) > 1]
