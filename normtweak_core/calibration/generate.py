"""Calibration windows written by the float model itself.

Source: LLM-QAT (generate_data.py), as Norm Tweaking (arXiv 2309.02784) takes it over.
A document is: the tokenizer's own prefix, a random first token, a few greedy tokens, then
seeded sampling with temperature 1 and top-k 50 (what the published code inherits from
transformers' defaults, pinned here). We differ in three points:

* the first token comes from the model's dominant scripts (first_token.py);
* a window is always full. Published code stops at the end-of-text token and pads, or packs what it
  got; here the token that ends a document is replaced by the start of the next one, inside the same
  window, which is also what windows cut from a text look like (text.py). All other special tokens
  have probability zero, and a document is not ended before MIN_DOCUMENT tokens;
* every window has its own random stream, indexed by position, so its text does not depend on which
  windows are generated beside it.
"""

import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.calibration.first_token import (
    FirstTokens,
    document_prefix,
    find_first_tokens,
    ordinary_token_ids,
    start_distribution,
)
from normtweak_core.calibration.known_ids import require_known_ids
from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.randomness import generator

logger = logging.getLogger(__name__)

TOP_K = 50
GREEDY_TOKENS = (2, 3, 4)  # LLM-QAT repeats its vocabulary once for each
MIN_DOCUMENT = 32  # shorter ones would fill a window with first tokens rather than with prose
CACHE_BYTES = 2**30  # keys, values and logits of one batch
MAX_BATCH = 128
MEMORIES = ("past_key_values", "cache_params", "state")  # of attention, Mamba, RWKV

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class GeneratedWindows:
    """Windows a model wrote, and how: first-token candidates and number of documents begun."""

    input_ids: Int64[Tensor, "samples length"]
    first_tokens: FirstTokens
    documents: int


@dataclass(frozen=True)
class _Rules:
    """What may follow what: the same for every window."""

    prefix: Int64[Tensor, " prefix"]
    first: Int64[Tensor, " candidates"]
    ends: Bool[Tensor, " vocab"]  # ids that end a document
    never: Bool[Tensor, " vocab"]  # ids that are never written


def generation_batch_size(config: PretrainedConfig, length: int) -> int:
    """Return how many windows are written at once: a function of the shapes, never of free memory.

    Args:
        config: Model config.
        length: Tokens per window.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1  # a model may have no attention
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    cache = text.num_hidden_layers * 2 * kv_heads * head_dim * length
    floats = cache + 3 * text.vocab_size  # logits, their float32 copy, the masked copy
    return max(1, min(MAX_BATCH, CACHE_BYTES // (4 * floats)))


@torch.no_grad()  # not inference_mode: the ids feed an embedding that is trained through later
def generate_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    length: int,
    seed: int,
    languages: str | list[str] | None = "auto",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> GeneratedWindows:
    """Return windows of text that the model writes itself.

    Args:
        model: Float model in eval mode. Not modified.
        tokenizer: Its tokenizer.
        samples: Number of windows.
        length: Tokens per window.
        seed: Recipe seed; window i draws from (seed, "generate", i).
        languages: Scripts of the first token: ``auto``, a list, or None for any token.
        batch_size: Windows written at once; None: ``generation_batch_size``.
        progress: Called with (tokens written, tokens in all).

    Raises:
        InputError: The vocabulary has no first token in the languages asked for.
        NonFiniteError: The model's logits are NaN.
    """
    assert not model.training, "dropout would draw from the global generator"
    prefix = torch.tensor(document_prefix(tokenizer), dtype=torch.int64)
    require_known_ids(prefix, model, tokenizer, "the beginning of a document")
    probabilities = start_distribution(model, tokenizer)
    first_tokens = find_first_tokens(tokenizer, probabilities, languages)
    rules = _rules(model, tokenizer, first_tokens, len(probabilities))
    batch_size = batch_size or generation_batch_size(model.config, length)
    started = time.monotonic()
    windows, documents = [], 0
    for start in range(0, samples, batch_size):
        indices = range(start, min(start + batch_size, samples))
        ids, begun = _write_batch(
            model,
            rules,
            _uniforms(seed, indices, length).to(model.device),
            torch.tensor([GREEDY_TOKENS[i % len(GREEDY_TOKENS)] for i in indices]),
            lambda done, start=start: (
                progress and progress(start * length + done, samples * length)
            ),
        )
        windows.append(ids.cpu())
        documents += begun
    rate = samples * length / max(time.monotonic() - started, 1e-9)
    logger.info("wrote %d tokens, %.0f tokens/s", samples * length, rate)
    return GeneratedWindows(torch.cat(windows), first_tokens, documents)


def _rules(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    first_tokens: FirstTokens,
    vocab_size: int,
) -> _Rules:
    ends = torch.zeros(vocab_size, dtype=torch.bool)
    ends[[i for i in _end_token_ids(model, tokenizer) if i < vocab_size]] = True
    never = torch.ones(vocab_size, dtype=torch.bool)
    never[ordinary_token_ids(tokenizer, vocab_size)] = False
    prefix = torch.tensor(document_prefix(tokenizer), dtype=torch.int64)
    device = model.device
    return _Rules(
        prefix.to(device),
        first_tokens.token_ids.to(device),
        ends.to(device),
        (never & ~ends).to(device),
    )


def _end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that end a document; one that begins the next document ends this one too."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ends = set(configured if isinstance(configured, list) else [configured])
    return (ends | {tokenizer.eos_token_id, tokenizer.bos_token_id}) - {None}


def _uniforms(seed: int, indices: range, length: int) -> Float64[Tensor, "batch length 2"]:
    """Return two uniform numbers per window and position: one to sample, one for first tokens."""
    draws = [
        torch.rand(length, 2, generator=generator(seed, "generate", i), dtype=torch.float64)
        for i in indices
    ]
    return torch.stack(draws)


def _write_batch(
    model: PreTrainedModel,
    rules: _Rules,
    uniforms: Float64[Tensor, "batch length 2"],
    greedy: Int64[Tensor, " batch"],
    report: Callable[[int], object],
) -> tuple[Int64[Tensor, "batch length"], int]:
    """Return the batch's windows and how many documents they begin."""
    batch, length = uniforms.shape[:2]
    device, num_prefix = uniforms.device, len(rules.prefix)
    greedy = greedy.to(device)
    ids = torch.empty(batch, length, dtype=torch.int64, device=device)
    age = torch.zeros(batch, dtype=torch.int64, device=device)  # position inside the document
    documents, cache, logits, memory = batch, None, None, _memory_of(model)
    for position in range(length):
        draws = uniforms[:, position]
        written = rules.first[
            (draws[:, 1] * len(rules.first)).long()
        ]  # overwritten where not first
        if logits is not None:
            body = _next_token(logits, draws[:, 0], age <= num_prefix + greedy, age, rules)
            ended = (age > num_prefix) & rules.ends[body]
            documents += int(ended.sum())
            age = torch.where(ended, 0, age)
            written = torch.where(age > num_prefix, body, written)
        if num_prefix:
            written = torch.where(
                age < num_prefix, rules.prefix[age.clamp(max=num_prefix - 1)], written
            )
        ids[:, position] = written
        age += 1
        report(batch * (position + 1))
        if position + 1 < length:
            out = model(input_ids=written[:, None], use_cache=True, **{memory: cache})
            cache, logits = out[memory], out.logits[:, -1].float()
    return ids, documents


def _memory_of(model: PreTrainedModel) -> str:
    """Return what a model calls that which it keeps of the tokens before.

    Raises:
        InputError: It keeps nothing.
    """
    accepted = inspect.signature(model.forward).parameters
    for name in MEMORIES:
        if name in accepted:
            return name
    raise InputError(
        f"text must be written by a model that keeps what it has read; {type(model).__name__} "
        "does not",
        key="calibration.source",
        remedy="choose text or dataset",
    )


def _next_token(
    logits: Float[Tensor, "batch vocab"],
    draws: Float64[Tensor, " batch"],
    greedy: Bool[Tensor, " batch"],
    age: Int64[Tensor, " batch"],
    rules: _Rules,
) -> Int64[Tensor, " batch"]:
    """Return each window's next token: the likeliest, or one of the TOP_K likeliest by its draw."""
    too_young = age < MIN_DOCUMENT
    forbidden = rules.never | (too_young[:, None] & rules.ends)
    top, ids = logits.masked_fill(forbidden, -torch.inf).topk(min(TOP_K, logits.shape[1]))
    cumulative = top.double().softmax(-1).cumsum(-1)
    if cumulative.isnan().any():
        raise NonFiniteError(
            "the float model must give finite logits; they became NaN while it wrote calibration "
            "text: check its weights and model.dtype"
        )
    # Divided by its end so that the last entry is exactly 1, above every draw.
    rank = (cumulative / cumulative[:, -1:] <= draws[:, None]).sum(-1)
    rank = torch.where(greedy, 0, rank)
    return ids.gather(1, rank[:, None])[:, 0]
