"""The GGUF file beside a bitnet export, for llama.cpp."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedConfig

from normtweak_core.export.exported import ExportedWeights
from normtweak_core.export.formats.checks import LinearShape
from normtweak_core.export.gguf.file import GgufFile, GgufObstacle, GgufRecord, Planned, Stored
from normtweak_core.export.gguf.ternary_checks import TYPE, gguf_error, gguf_obstacle
from normtweak_core.export.gguf.ternary_tensors import check_linears, gguf_tensors, packed
from normtweak_core.model.skeleton import load_config

log = logging.getLogger(__name__)


def write_ternary_gguf(
    folder: Path, weights: ExportedWeights, source: Path, *, required: bool
) -> dict[str, object]:
    """Return the ``consumers`` of a bitnet export, after writing the GGUF file if there can be one.

    Args:
        folder: The export, whose payload is there.
        weights: Its weights.
        source: Folder of the float model.
        required: Whether the file must be written.

    Raises:
        InputError: It must and cannot be written.
    """
    made = write_gguf(folder, weights, load_config(source))
    if isinstance(made, str):
        if required:
            raise gguf_error(made)
        llama_cpp: dict[str, object] = {"file": None, "reason": made}
    else:
        llama_cpp = asdict(made)
    loader = {"file": ".", "class": "AutoModelForCausalLM", "needs": ["accelerate"]}
    return {"transformers": loader, "llama.cpp": llama_cpp}


def write_gguf(
    folder: Path, weights: ExportedWeights, config: PreTrainedConfig
) -> GgufRecord | str:
    """Write the file into an export, or return why it cannot be written, as a clause.

    Args:
        folder: The export, whose payload is there.
        weights: Its weights.
        config: The model's config.
    """
    try:
        _check(weights, config)
        # Twice over the tensors: the table of contents comes first, and memory holds one at a time.
        contents = [
            Planned(tensor.name, tensor.kind, tuple(tensor.values.shape))
            for tensor in gguf_tensors(weights, config.num_hidden_layers)
        ]
    except GgufObstacle as obstacle:
        log.info("no GGUF beside the export: %s", obstacle)
        return str(obstacle)
    file = GgufFile(folder, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.BITNET], TYPE, config.vocab_size)
    _add_settings(file.writer, config)
    return file.write(contents, _stored(weights, config))


def _stored(weights: ExportedWeights, config: PreTrainedConfig) -> Iterator[Stored]:
    for tensor in gguf_tensors(weights, config.num_hidden_layers):
        yield Stored(packed(tensor), tensor.values)


def _check(weights: ExportedWeights, config: PreTrainedConfig) -> None:
    shapes = {name: LinearShape(*weights.linear(name).codes.shape) for name in weights.linears}
    obstacle = gguf_obstacle(config.to_dict(), shapes)
    if obstacle is not None:
        raise GgufObstacle(obstacle)
    if weights.scheme.rms_norm and weights.scheme.rms_norm_eps != config.rms_norm_eps:
        raise GgufObstacle(
            "all norms must have one eps, and the norms before the linears have "
            f"{weights.scheme.rms_norm_eps:g} where the model has {config.rms_norm_eps:g}"
        )
    check_linears(weights, config.num_hidden_layers)


def _add_settings(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    rope: dict[str, Any] = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(rope["rope_theta"])
