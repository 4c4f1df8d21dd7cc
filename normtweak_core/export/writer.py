"""Writes a quantized model as a folder that stock readers open, in one pass over its tensors."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int64
from safetensors.torch import save_file
from torch import Tensor

from normtweak_core.evaluate.size import quantized_storage
from normtweak_core.export.card import model_card
from normtweak_core.export.config import AnyExportConfig
from normtweak_core.export.contents import Contents
from normtweak_core.export.exported import ExportedWeights
from normtweak_core.export.float_type import resolve_export_dtype
from normtweak_core.export.folder import (
    MANIFEST,
    MODEL_CARD,
    complete_folder,
    sync,
    write_bytes,
    write_json,
)
from normtweak_core.export.formats.checks import check_ternary_format
from normtweak_core.export.formats.scheme import Scheme, TernaryScheme
from normtweak_core.export.formats.table import BITNET, chosen_format, describe
from normtweak_core.export.gguf.grid_file import write_grid_gguf
from normtweak_core.export.gguf.ternary_file import write_ternary_gguf
from normtweak_core.export.manifest import PROBE_FILE, build_manifest, dtype_name
from normtweak_core.export.origin import Origin, SourceCard
from normtweak_core.export.payload import (
    GENERATION_CONFIG,
    file_hashes,
    hash_lines,
    payload_bytes,
    relative_name,
)
from normtweak_core.export.record import ExportRecord
from normtweak_core.export.shards import METADATA, ShardWriter
from normtweak_core.export.verification.layer_probe import layer_probe
from normtweak_core.export.verification.probe import probe_rows, reference_logits
from normtweak_core.export.verification.tokenizer_probe import tokenizer_probe
from normtweak_core.model.architecture import read_config
from normtweak_core.model.foreign_code import AUTO_MAP
from normtweak_core.model.tokenizer_files import processor_files, tokenizer_files
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.ternary.weight import TernaryLinear
from normtweak_core.vision.kinds import reads_images

MAX_SHARD_BYTES = 5_000_000_000
# Keys that name a place instead of describing the model, or that the export writes itself.
# (auto_map: code of the source's folder, which is neither carried along nor run by any reader).
DROPPED_CONFIG_KEYS = ("_name_or_path", "torch_dtype", "quantization_config", AUTO_MAP)
Gguf = Literal["exact", "inexact"] | None  # whether the file must be there, and what it may hold
DROPPED_ENTRIES = ("_name_or_path", "name_or_path", AUTO_MAP)


def write_export(
    out: Path,
    source: Path,
    layers: Mapping[str, QuantizedWeight],
    replaced: Mapping[str, Tensor],
    config: AnyExportConfig,
    *,
    dtype: torch.dtype | None = None,
    windows: Int64[Tensor, "windows tokens"] | None = None,
    details: Mapping[str, object] | None = None,
    widths: Mapping[str, int] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
    origin: Origin | None = None,
    image_windows: int = 0,
) -> ExportRecord:
    """Write the quantized model to the folder ``out``, which appears only when it is complete.

    Args:
        out: Export folder: new, empty or an earlier export, which is replaced.
        source: Folder of the float model: every tensor not given here is copied from it.
        layers: Quantized linears by full module name. Each is asked for once, block by block, so
            that a mapping may load them lazily.
        replaced: Float tensors that take the source's place, by full parameter name.
        config: Format and float type. gguf is compressed-tensors with a GGUF file beside it.
        dtype: The float type that the scales were rounded to; None resolves it from the source.
        windows: Calibration windows, the first few of which become part of the probe.
        details: Further entries of normtweak.json: recipe, lineage, block report.
        widths: Of the layers, where they may differ: config.json comes to hold them.
        max_shard_bytes: Largest weight file, and what is in memory at a time.
        progress: Called with tensors done and tensors in all.
        origin: Of codes that another tool has made, for the model card.
        image_windows: How many of the windows hold an image, for the model card.

    Raises:
        InputError: ``out`` is in the way, or a tensor of the source is missing.
        FloatTypeError: The float type does not hold the model, as readers compute.
        NonFiniteError: A tensor is NaN or infinite.
        ValueError: Layers or replaced tensors do not belong to this model, or do not share one
            scheme, or carry scales that the float type does not hold.

    """
    form = chosen_format(config)
    if form is BITNET:
        raise ValueError(
            f"export.format: {config.format} holds ternary linears; these are quantized on a grid. "
            "Write ternary ones with write_ternary_export, or use another format."
        )
    dtype = dtype or resolve_export_dtype(config, source)
    contents = Contents(source, layers, replaced, form, dtype, Scheme.of, widths)
    rows = probe_rows(source, windows)
    gguf, more = _gguf(config), details or {}
    images = image_windows if reads_images(read_config(source)) else None
    about = origin, images
    return _write(out, source, contents, rows, more, max_shard_bytes, progress, gguf, *about)


def write_ternary_export(
    out: Path,
    source: Path,
    layers: Mapping[str, TernaryLinear],
    replaced: Mapping[str, Tensor],
    config: AnyExportConfig,
    *,
    rms_norm_eps: float,
    dtype: torch.dtype | None = None,
    windows: Int64[Tensor, "windows tokens"] | None = None,
    details: Mapping[str, object] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> ExportRecord:
    """Write the ternary model to the folder ``out``, which appears only when it is complete.

    Args:
        out: Export folder: new, empty or an earlier export, which is replaced.
        source: Folder of the float model: every tensor not given here is copied from it.
        layers: Ternary linears by full module name, each with its own bias, and all or none with
            the gain of an RMSNorm before it. Each is asked for once, block by block.
        replaced: Float tensors that take the source's place, by full parameter name: block norms,
            embeddings, whatever training changed.
        config: Format, which must be auto, bitnet or gguf, and float type. All write bitnet, and a
            GGUF file beside it where llama.cpp can hold the model; gguf insists on that.
        rms_norm_eps: Of the RMSNorm before every linear.
        dtype: The float type that the scales were rounded to; None resolves it from the source.
        windows: Calibration windows, the first few of which become part of the probe.
        details: Further entries of normtweak.json: recipe, lineage, training report.
        max_shard_bytes: Largest weight file, and what is in memory at a time.
        progress: Called with tensors done and tensors in all.

    Raises:
        InputError: The format is another, ``out`` is in the way, rows do not fill whole bytes, a
            tensor of the source is missing, or GGUF was asked for and cannot hold the model.
        FloatTypeError: The float type does not hold the model, as readers compute.
        NonFiniteError: A tensor is NaN or infinite.
        ValueError: Layers or replaced tensors do not belong to this model, only some layers have a
            gain, or a scale is not a number of the float type.

    """
    check_ternary_format(config)
    dtype = dtype or resolve_export_dtype(config, source)
    scheme_of = partial(TernaryScheme.of, rms_norm_eps=rms_norm_eps)
    contents = Contents(source, layers, replaced, BITNET, dtype, scheme_of)
    required = _gguf(config)
    rows = probe_rows(source, windows)
    return _write(out, source, contents, rows, details or {}, max_shard_bytes, progress, required)


def _gguf(config: AnyExportConfig) -> Gguf:
    if config.format != "gguf":
        return None
    return "inexact" if config.allows_inexact else "exact"


def _write(
    out: Path,
    source: Path,
    contents: Contents,
    rows: Int64[Tensor, "rows seq"],
    details: Mapping[str, object],
    max_shard_bytes: int,
    progress: Callable[[int, int], None] | None,
    gguf: Gguf = None,
    origin: Origin | None = None,
    image_windows: int | None = None,
) -> ExportRecord:
    """Write payload, probe, GGUF, model card and manifest, in this order."""
    form, dtype = contents.form, contents.dtype
    with complete_folder(out) as folder:
        shards = ShardWriter(folder, max_shard_bytes)
        names = contents.names()
        for i, name in enumerate(names):
            contents.write(name, shards)
            if progress is not None:
                progress(i + 1, len(names))
        shards.finish()
        scheme = contents.scheme
        assert scheme is not None  # there is at least one layer
        linears, quantized = (
            frozenset(map(contents.naming.linear, names))
            for names in (contents.linears, contents.quantized)
        )
        told = contents.block_prefix, contents.unpacked
        described = describe(form, scheme, linears, quantized, *told)
        write_json(folder / "config.json", _model_config(source, dtype, described))
        _copy_texts(source, folder)
        weights = ExportedWeights(folder, form, scheme, dtype, contents.entries)
        _write_probe(folder, source, weights, dtype, rows)
        files = file_hashes(folder)
        record = ExportRecord(
            folder=out,
            format=form.name,
            dtype=dtype_name(dtype),
            scheme=scheme,
            payload_sha256=hash_lines(files),
            size_bytes=payload_bytes(folder),
            bits_per_weight=_bits_per_weight(folder),
            origin=origin,
            image_windows=image_windows,
            source=SourceCard.of(source),
        )
        for name in record.source.legal:
            write_bytes(folder / name, (source / name).read_bytes())
        consumers = None
        if form is BITNET:
            consumers = write_ternary_gguf(folder, weights, source, required=gguf is not None)
        elif gguf is not None:
            consumers = write_grid_gguf(
                folder, weights, contents.entries, source, inexact=gguf == "inexact"
            )
        record = replace(record, consumers=consumers)
        _write_manifest(folder, source, record, contents.entries, files, details)
    return record


def copy_export(record: ExportRecord, out: Path) -> ExportRecord:
    """Write an export to another folder, which appears only when it is complete.

    All files are the same, but for the model card, which says what the folder is called.

    Args:
        record: Of the export.
        out: New, empty or an earlier export, which is replaced.

    Raises:
        InputError: ``out`` is in the way.
    """
    copied = replace(record, folder=out)
    with complete_folder(out) as folder:
        for path in sorted(record.folder.rglob("*")):
            target = folder / path.relative_to(record.folder)
            if path.is_dir():
                target.mkdir()
            else:
                shutil.copy(path, target)
                sync(target)
        write_bytes(folder / MODEL_CARD, model_card(copied).encode())
    return copied


def _write_probe(
    folder: Path,
    source: Path,
    weights: ExportedWeights,
    dtype: torch.dtype,
    rows: Int64[Tensor, "rows seq"],
) -> None:
    """Write what a faithful reader must reproduce."""
    tensors = reference_logits(weights, source, dtype_name(dtype), rows).tensors()
    if weights.ternary or weights.rounded:
        tensors |= layer_probe(weights, dtype)
    path = folder / PROBE_FILE
    path.parent.mkdir()
    save_file(tensors, path, metadata=METADATA)
    path.chmod(0o644)
    sync(path)


def _model_config(
    source: Path, dtype: torch.dtype, quantization: Mapping[str, object]
) -> dict[str, object]:
    config = read_config(source)
    kept = {key: value for key, value in config.items() if key not in DROPPED_CONFIG_KEYS}
    return kept | {"dtype": dtype_name(dtype), "quantization_config": quantization}


def _copy_texts(source: Path, folder: Path) -> None:
    """Copy configs of generation, tokenizer and processor, without where they were loaded from."""
    generation = source / GENERATION_CONFIG
    copied = [generation] * generation.is_file() + tokenizer_files(source)
    for path in copied + processor_files(source):
        content = path.read_bytes()
        entries = json.loads(content) if path.name.endswith("_config.json") else {}
        target = folder / relative_name(path, source)
        target.parent.mkdir(exist_ok=True)
        if any(key in entries for key in DROPPED_ENTRIES):
            kept = {key: value for key, value in entries.items() if key not in DROPPED_ENTRIES}
            write_json(target, kept)
        else:
            write_bytes(target, content)


def _bits_per_weight(folder: Path) -> float:
    bits = quantized_storage(folder).bits_per_weight
    assert bits is not None  # there is at least one layer
    return bits


def _write_manifest(
    folder: Path,
    source: Path,
    record: ExportRecord,
    tensors: Mapping[str, object],
    files: Mapping[str, str],
    details: Mapping[str, object],
) -> None:
    """Write the model card and, last, the manifest."""
    write_bytes(folder / MODEL_CARD, model_card(record).encode())
    manifest = build_manifest(
        form=record.format,
        scheme=record.scheme.recorded(),
        dtype=record.dtype,
        tensors=tensors,
        files=files,
        payload_sha256=record.payload_sha256,
        tokenizer=tokenizer_probe(source),
        bits_per_weight=record.bits_per_weight,
        size_bytes=record.size_bytes,
        consumers=record.consumers,
        details=details,
    )
    write_json(folder / MANIFEST, manifest)
