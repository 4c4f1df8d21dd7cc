"""What a faithful reader must reproduce: logits of a few tokens.

The reference logits come from our own unpacking of the written folder, multiplied as dense linears
in the export dtype: what any reader computes once it has the same weights. Ternary linears round
what they read and compute in float32 (see `TernaryInference`). The parameters of a block are read
when it runs and dropped right after, so one block is in memory at a time.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from normtweak_core.export.exported import ExportedWeights
from normtweak_core.model.skeleton import assign, build_skeleton, compute_buffers
from normtweak_core.model.structure import find_blocks
from normtweak_core.ternary.inference import TernaryInference

PROBE_TOKENS = 16
KEPT_COLUMNS = 4096  # logits kept per token, so that a large vocabulary stays a small file


@dataclass(frozen=True)
class LogitProbe:
    """Logits of the dequantized model on fixed tokens, at evenly spaced vocabulary columns."""

    input_ids: Int64[Tensor, "1 seq"]
    columns: Int64[Tensor, " kept"]
    logits: Float[Tensor, "seq kept"]  # float32
    argmax: Int64[Tensor, " seq"]  # over the whole vocabulary
    margin: Float[Tensor, " seq"]  # largest minus second largest logit

    def tensors(self) -> dict[str, Tensor]:
        """Return the probe as tensors to be stored."""
        return dict(vars(self))


def reference_logits(weights: ExportedWeights, source: Path, dtype: torch.dtype) -> LogitProbe:
    """Return the logits of an export, computed from our own dequantized weights.

    Args:
        weights: The written export.
        source: Folder of the float model, whose config says how the weights are used.
        dtype: The export dtype, in which the linears multiply.

    """
    model = _streaming_model(weights, source, dtype)
    config = model.config.get_text_config()
    ids = probe_tokens(config.vocab_size, getattr(config, "max_position_embeddings", None))
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0].to(torch.float32)
    top = logits.topk(2, dim=-1).values
    columns = torch.arange(0, logits.shape[1], -(-logits.shape[1] // KEPT_COLUMNS))
    return LogitProbe(
        input_ids=ids,
        columns=columns,
        logits=logits[:, columns].contiguous(),
        argmax=logits.argmax(dim=-1),
        margin=top[:, 0] - top[:, 1],
    )


def probe_tokens(vocab_size: int, context: int | None) -> Int64[Tensor, "1 seq"]:
    """Return fixed token ids spread over the vocabulary."""
    length = min(PROBE_TOKENS, context or PROBE_TOKENS)
    return ((torch.arange(length) * 7919 + 13) % vocab_size).unsqueeze(0)


def _streaming_model(weights: ExportedWeights, source: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with dense linears, whose blocks read their parameters when they run."""
    model = build_skeleton(source, dtype)
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # only the buffers are to be computed
    compute_buffers(model, model.modules(), "cpu")
    blocks = find_blocks(model)
    for name in weights.linears if weights.ternary else ():
        model.set_submodule(name, _StreamedTernary(name, weights))
    buffers = [name for name, _ in model.named_buffers() if name in weights]
    assign(model, "", {name: weights.read(name) for name in buffers})
    stored = {name: _stored_name(name, model, weights) for name, _ in model.named_parameters()}
    inside = f"{blocks.prefix}."
    rest = {name: origin for name, origin in stored.items() if not name.startswith(inside)}
    tensors = {origin: weights.read(origin) for origin in rest.values()}
    assign(model, "", {name: tensors[origin] for name, origin in rest.items()})
    for index in range(len(blocks.modules)):
        prefix = f"{inside}{index}"
        names = {name: stored[name] for name in stored if name.startswith(f"{prefix}.")}
        _stream(model.get_submodule(prefix), prefix, names, weights)
    return model


def _stored_name(name: str, model: PreTrainedModel, weights: ExportedWeights) -> str:
    """Return the name under which a parameter is stored: its own, or one that it is tied to."""
    ties = model.all_tied_weights_keys
    origin = ties.get(name, name)
    group = [name, origin, *(other for other, source in ties.items() if source == origin)]
    return next(member for member in group if member in weights)


class _StreamedTernary(nn.Module):
    """A ternary linear that is read from the export whenever it runs."""

    def __init__(self, name: str, weights: ExportedWeights):
        super().__init__()
        self._name, self._weights = name, weights

    def forward(self, x: Tensor) -> Tensor:
        layer = self._weights.linear(self._name)
        return TernaryInference(layer, self._weights.scheme.rms_norm_eps)(x)


def _stream(block: nn.Module, prefix: str, names: dict[str, str], weights: ExportedWeights) -> None:
    """Make a block read its parameters before it runs and drop them afterwards.

    All of them at once: some modules read the weight of a part without ever calling the part.
    """

    def load(_: nn.Module, args: object) -> None:
        assign(block, prefix, {name: weights.read(origin) for name, origin in names.items()})

    def drop(_: nn.Module, args: object, output: object) -> None:
        held = {name: block.get_parameter(name.removeprefix(f"{prefix}.")) for name in names}
        assign(block, prefix, {name: tensor.to("meta") for name, tensor in held.items()})

    block.register_forward_pre_hook(load)
    block.register_forward_hook(drop)
