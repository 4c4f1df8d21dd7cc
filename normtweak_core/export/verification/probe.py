"""What a faithful reader must reproduce: logits of a few windows.

The windows are ids spread over the vocabulary and the beginnings of calibration windows, with the
token that begins a document and without it: there activations are largest. The logits come from our
own unpacking of the written folder, multiplied as dense linears in the export dtype: what any
reader computes once it has the same weights. Ternary linears round what they read (see
`TernaryInference`). The parameters of a block are read when it runs and dropped right after, so one
block is in memory at a time. The same windows in float32 tell whether the export dtype holds the
model at all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel

from normtweak_core.activations.rounding import round_inputs
from normtweak_core.calibration.first_token import document_prefix
from normtweak_core.export.exported import ExportedWeights
from normtweak_core.export.float_type import DTYPES, own_float_type
from normtweak_core.export.formats.checks import FloatTypeError
from normtweak_core.export.trace import Peaks, Trace, why_not
from normtweak_core.export.verification.layer_probe import layer_problem
from normtweak_core.model.skeleton import assign, build_skeleton, compute_buffers, load_config
from normtweak_core.model.structure import find_blocks
from normtweak_core.model.tokenizer import load_tokenizer
from normtweak_core.model.tokenizer_files import tokenizer_files
from normtweak_core.on_demand import read_ends_when_run, read_when_run
from normtweak_core.ternary.arithmetic import linear_problem
from normtweak_core.ternary.inference import TernaryInference

SPREAD_TOKENS = 16  # of a probe without calibration windows
ROW_TOKENS = 64
PROBE_WINDOWS = 4
KEPT_LOGITS = 2**18  # in all: the columns of a large vocabulary are thinned out


@runtime_checkable
class Weights(Protocol):
    """Parameters of a model by name, read one by one: `ExportedWeights`, or those of the float."""

    ternary: bool  # whether linears are modules that round what they read
    rounded: list[str]  # names of the dense linears that read rounded activations

    def __contains__(self, name: str) -> bool:
        """Say whether ``read`` returns this parameter."""
        ...

    def read(self, name: str) -> Tensor:
        """Return a parameter."""
        ...


@dataclass(frozen=True)
class LogitProbe:
    """Logits of the dequantized model on fixed tokens, at evenly spaced vocabulary columns.

    The tokens of all rows follow each other.
    """

    input_ids: Int64[Tensor, "rows seq"]
    columns: Int64[Tensor, " kept"]
    logits: Float[Tensor, "tokens kept"]  # float32
    argmax: Int64[Tensor, " tokens"]  # over the whole vocabulary
    margin: Float[Tensor, " tokens"]  # largest minus second largest logit

    def tensors(self) -> dict[str, Tensor]:
        """Return the probe as tensors to be stored."""
        return dict(vars(self))


def reference_logits(
    weights: ExportedWeights, source: Path, name: str, rows: Int64[Tensor, "rows seq"]
) -> LogitProbe:
    """Return the logits of an export, computed from our own dequantized weights.

    Args:
        weights: The written export.
        source: Folder of the float model, whose config says how the weights are used.
        name: Of the export dtype, in which the linears multiply.
        rows: Token ids.

    Raises:
        FloatTypeError: The export dtype does not hold the model.
    """
    trial = ExportTrial(weights, source, rows)
    if (why := trial(name)) is not None:
        others = [other for other in DTYPES if other != name and trial(other) is None]
        raise FloatTypeError(name, why, others, weights.format)
    logits = trial.run(name).logits
    top = logits.topk(2, dim=-1).values
    columns = torch.arange(0, logits.shape[1], -(-logits.numel() // KEPT_LOGITS))
    return LogitProbe(
        input_ids=rows,
        columns=columns,
        logits=logits[:, columns].contiguous(),
        argmax=logits.argmax(dim=-1),
        margin=top[:, 0] - top[:, 1],
    )


class ExportTrial:
    """Runs a written export as its readers do, in one float type after another."""

    def __init__(self, weights: ExportedWeights, source: Path, rows: Int64[Tensor, "rows seq"]):
        """Note what to run; nothing is read yet."""
        self._weights, self._source, self._rows = weights, source, rows
        self._traces: dict[str, Trace] = {}
        self._linear_problems: dict[str, str] = {}  # of ternary linears: the first, by float type

    def __call__(self, name: str) -> str | None:
        """Return why a float type does not hold the export; None where it does."""
        dtype, reference, ternary = DTYPES[name], self.run("float32"), self._weights.ternary
        if ternary:
            why = self._linear_problems.get(name) or layer_problem(self._weights, dtype)
            if why is not None:
                return why
        # A ternary model is another one than the float model, and was trained in float32.
        own = not ternary and dtype is own_float_type(self._source)
        return why_not(reference, lambda: self.run(name), dtype, 0, ternary, own)

    def run(self, name: str) -> Trace:
        """Return what the export does in a float type, computed once."""
        if name not in self._traces:
            peaks = Peaks()
            model, blocks = streaming_model(self._weights, self._source, DTYPES[name])
            for index, block in enumerate(blocks):
                peaks.watch(block, f"activations of block {index}")
            for linear in model.modules():
                if name == "float32" and isinstance(linear, _StreamedTernary):
                    linear.look = self._judge
            with torch.inference_mode():
                logits = model(input_ids=self._rows, use_cache=False).logits
            logits = logits.flatten(0, 1).to(torch.float32)
            peaks.note("logits", logits)
            self._traces[name] = Trace(peaks, logits)
        return self._traces[name]

    def _judge(self, linear: str, run: TernaryInference, x: Tensor) -> None:
        for name in ("float16", "bfloat16"):
            why = linear_problem(linear, run, x, DTYPES[name])
            if why is not None:
                self._linear_problems.setdefault(name, why)


def probe_rows(
    folder: Path, windows: Int64[Tensor, "windows tokens"] | None = None
) -> Int64[Tensor, "rows seq"]:
    """Return the token ids that a model is tried on.

    Args:
        folder: Of the model, whose tokenizer, or else config, says what begins a document.
        windows: Calibration windows, of which the first few are taken; None: spread ids alone.
    """
    config = load_config(folder).get_text_config()
    size = config.vocab_size
    context = getattr(config, "max_position_embeddings", None) or ROW_TOKENS
    if windows is None:
        return spread_tokens(size, min(SPREAD_TOKENS, context))[None]
    length = min(ROW_TOKENS, context, windows.shape[1])
    prefix = [token for token in _beginning(folder, config) if 0 <= token < size][:length]
    rows = [spread_tokens(size, length), windows[0, :length]]
    for window in windows[:PROBE_WINDOWS]:
        own = window[: len(prefix)].tolist() == prefix
        begun = window if own else torch.cat([torch.tensor(prefix, dtype=window.dtype), window])
        rows.append(begun[:length])
    return torch.stack(rows)


def _beginning(folder: Path, config: object) -> list[int]:
    """Return the ids that begin a document: what the tokenizer puts there, else BOS."""
    begin = getattr(config, "bos_token_id", None)
    if tokenizer_files(folder):
        tokenizer = load_tokenizer(folder)
        if prefix := document_prefix(tokenizer):
            return prefix
        begin = begin if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [begin] if isinstance(begin, int) else []


def spread_tokens(vocab_size: int, length: int) -> Int64[Tensor, " seq"]:
    """Return fixed token ids spread over the vocabulary."""
    return (torch.arange(length) * 7919 + 13) % vocab_size


def streaming_model(
    weights: Weights, source: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, list[nn.Module]]:
    """Return the model and its blocks, which read their parameters when they run."""
    model = build_skeleton(source, dtype)
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # only the buffers are to be computed
    compute_buffers(model, model.modules(), "cpu")
    blocks = find_blocks(model)
    round_inputs(model, weights.rounded)
    for name in weights.linears if weights.ternary else ():
        model.set_submodule(name, _StreamedTernary(name, weights))
    buffers = [name for name, _ in model.named_buffers() if name in weights]

    def read(name: str) -> Tensor:
        tensor = weights.read(name)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    assign(model, "", {name: read(name) for name in buffers})
    stored = {name: _stored_name(name, model, weights) for name, _ in model.named_parameters()}
    inside = f"{blocks.prefix}."
    rest = {name: origin for name, origin in stored.items() if not name.startswith(inside)}
    tensors = {origin: read(origin) for origin in rest.values()}
    assign(model, "", {name: tensors[origin] for name, origin in rest.items()})
    del tensors
    read_ends_when_run(model, rest, read)
    for index in range(len(blocks.modules)):
        prefix = f"{inside}{index}"
        names = {name: stored[name] for name in stored if name.startswith(f"{prefix}.")}
        read_when_run(model.get_submodule(prefix), prefix, names, read)
    return model, blocks.modules


def _stored_name(name: str, model: PreTrainedModel, weights: Weights) -> str:
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
        self.look: Callable[[str, TernaryInference, Tensor], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        layer = self._weights.linear(self._name)
        run = TernaryInference(layer, self._weights.scheme.rms_norm_eps)
        if self.look is not None:
            self.look(self._name, run, x)
        return run(x)
