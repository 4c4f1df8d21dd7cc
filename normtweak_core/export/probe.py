"""What a faithful reader must reproduce: logits of a few tokens, and ids of a short text.

The reference logits come from our own unpacking of the written folder, multiplied as dense linears
in the export dtype: what any reader computes once it has the same weights. Ternary linears round
what they read and compute in float32 (see `TernaryInference`). Parameters are read when their
module runs and dropped right after, so one linear is in memory at a time.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from normtweak_core.export.exported import ExportedWeights
from normtweak_core.export.payload import tokenizer_files
from normtweak_core.model.skeleton import allocate_computed_buffers, assign, build_skeleton
from normtweak_core.model.tokenizer import load_tokenizer
from normtweak_core.ternary.inference import TernaryInference

PROBE_TOKENS = 16
KEPT_COLUMNS = 4096  # logits kept per token, so that a large vocabulary stays a small file
PROBE_TEXT = "The quick brown fox (aged 7) said: déjà vu?\n\tYes, 42 times — 世界 🙂"


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


def tokenizer_probe(folder: Path) -> dict[str, object] | None:
    """Return a text with its token ids and their decoding; None for a folder without tokenizer."""
    if not tokenizer_files(folder):
        return None
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(PROBE_TEXT)["input_ids"]
    return {"text": PROBE_TEXT, "ids": ids, "decoded": tokenizer.decode(ids)}


def _streaming_model(weights: ExportedWeights, source: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with dense linears, whose modules read their parameters when they run."""
    model = build_skeleton(source, dtype)
    tied = model.all_tied_weights_keys
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # only the buffers are to be computed
    allocate_computed_buffers(model.modules(), "cpu")
    model.initialize_weights()
    for name in weights.linears if weights.ternary else ():
        model.set_submodule(name, _StreamedTernary(name, weights))
    buffers = [name for name, _ in model.named_buffers() if name in weights]
    assign(model, "", {name: weights.read(name) for name in buffers})
    for prefix, module in model.named_modules():
        names = {}
        for key, _ in module.named_parameters(recurse=False):
            name = f"{prefix}.{key}"
            names[key] = name if name in weights else tied[name]
        if names:
            _stream(module, names, weights)
    return model


class _StreamedTernary(nn.Module):
    """A ternary linear that is read from the export whenever it runs."""

    def __init__(self, name: str, weights: ExportedWeights):
        super().__init__()
        self._name, self._weights = name, weights

    def forward(self, x: Tensor) -> Tensor:
        layer = self._weights.linear(self._name)
        return TernaryInference(layer, self._weights.scheme.rms_norm_eps)(x)


def _stream(module: nn.Module, names: dict[str, str], weights: ExportedWeights) -> None:
    """Make the module read its parameters before it runs and drop them afterwards."""

    def load(module: nn.Module, args: object) -> None:
        for key, name in names.items():
            setattr(module, key, nn.Parameter(weights.read(name), requires_grad=False))

    def drop(module: nn.Module, args: object, output: object) -> None:
        for key in names:
            setattr(module, key, nn.Parameter(getattr(module, key).to("meta"), requires_grad=False))

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
