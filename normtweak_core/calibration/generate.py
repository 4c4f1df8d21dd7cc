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
* every window has its own random stream, indexed by position: the noise of (seed, window, position)
  is the same whichever windows are written beside it. Logits may differ in their last bit between
  batches of different size, which changes a window where a draw falls on that bit: hardly ever in
  float32, often in bfloat16, whose last bit is large.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.calibration.cache import (
    cache_name,
    make_room,
    window_bytes,
    windows_at_once,
)
from normtweak_core.calibration.first_token import (
    FirstTokens,
    document_prefix,
    find_first_tokens,
    ordinary_token_ids,
    start_distribution,
)
from normtweak_core.calibration.known_ids import require_known_ids
from normtweak_core.errors import NonFiniteError
from normtweak_core.randomness import generator
from normtweak_core.vision.kinds import image_token_ids

logger = logging.getLogger(__name__)

TOP_K = 50
GREEDY_TOKENS = (2, 3, 4)  # LLM-QAT repeats its vocabulary once for each
MIN_DOCUMENT = 32  # shorter ones would fill a window with first tokens rather than with prose
CHECK_EVERY = 64  # tokens of a window between two looks at whether the logits are still numbers

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
    ends: Int64[Tensor, " ends"]  # ids that end a document
    never: Bool[Tensor, " vocab"]  # ids that are never written


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
        batch_size: Windows written at once; None: as many as memory holds (``windows_at_once``).
        progress: Called with (tokens written, tokens in all); on a GPU, with those asked for.

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
    each = window_bytes(model, length)
    batch_size = batch_size or windows_at_once(each, samples, str(model.device))
    started = time.monotonic()
    windows, documents = [], 0
    for start in range(0, samples, batch_size):
        indices = range(start, min(start + batch_size, samples))
        ids, begun = _write_batch(
            model,
            rules,
            uniforms(seed, indices, length).to(model.device),
            torch.tensor([GREEDY_TOKENS[i % len(GREEDY_TOKENS)] for i in indices]),
            lambda done, start=start: (
                progress and progress(start * length + done, samples * length)
            ),
        )
        windows.append(ids.cpu())
        documents += begun
    rate = samples * length / max(time.monotonic() - started, 1e-9)
    logger.info(
        "wrote %d tokens, %.0f tokens/s, %d windows at once with %.1f MiB each",
        samples * length,
        rate,
        batch_size,
        each / 2**20,
    )
    return GeneratedWindows(torch.cat(windows), first_tokens, documents)


def _rules(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    first_tokens: FirstTokens,
    vocab_size: int,
) -> _Rules:
    ends = torch.tensor(
        sorted(i for i in _end_token_ids(model, tokenizer) if i < vocab_size), dtype=torch.int64
    )
    never = torch.ones(vocab_size, dtype=torch.bool)
    never[ordinary_token_ids(tokenizer, vocab_size)] = False
    never[ends] = False
    never[[token for token in image_token_ids(model.config) if token < vocab_size]] = True
    prefix = torch.tensor(document_prefix(tokenizer), dtype=torch.int64)
    device = model.device
    return _Rules(
        prefix.to(device),
        first_tokens.token_ids.to(device),
        ends.to(device),
        never.to(device),
    )


def _end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that end a document; one that begins the next document ends this one too."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ends = set(configured if isinstance(configured, list) else [configured])
    return (ends | {tokenizer.eos_token_id, tokenizer.bos_token_id}) - {None}


def uniforms(seed: int, indices: range, length: int) -> Float64[Tensor, "batch length 2"]:
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
    documents = torch.tensor(batch, device=device)
    finite = torch.tensor(True, device=device)
    cache, logits, name = None, None, cache_name(model)
    # Nothing of a step is looked at here: on a GPU the next step would wait for it.
    for position in range(length):
        draws = uniforms[:, position]
        written = rules.first[
            (draws[:, 1] * len(rules.first)).long()
        ]  # overwritten where not first
        if logits is not None:
            body, known = _next_token(logits, draws[:, 0], age <= num_prefix + greedy, age, rules)
            ended = (age > num_prefix) & torch.isin(body, rules.ends)
            finite &= known
            documents += ended.sum()
            age = torch.where(ended, 0, age)
            written = torch.where(age > num_prefix, body, written)
        if num_prefix:
            written = torch.where(
                age < num_prefix, rules.prefix[age.clamp(max=num_prefix - 1)], written
            )
        ids[:, position] = written
        age += 1
        if position % CHECK_EVERY == CHECK_EVERY - 1 or position + 1 == length:
            _require_finite(finite)
        report(batch * (position + 1))
        if position + 1 < length:
            out = model(input_ids=written[:, None], use_cache=True, **{name: cache})
            if cache is None:
                make_room(out[name], length)
            cache, logits = out[name], out.logits[:, -1].float()
    return ids, int(documents)


def _require_finite(finite: Bool[Tensor, ""]) -> None:
    if not finite:
        raise NonFiniteError(
            "the float model must give finite logits; they became NaN while it wrote calibration "
            "text: check its weights and model.dtype"
        )


def _next_token(
    logits: Float[Tensor, "batch vocab"],
    draws: Float64[Tensor, " batch"],
    greedy: Bool[Tensor, " batch"],
    age: Int64[Tensor, " batch"],
    rules: _Rules,
) -> tuple[Int64[Tensor, " batch"], Bool[Tensor, ""]]:
    """Return each window's next token, and whether no logit was NaN.

    The token is the likeliest, or one of the TOP_K likeliest by its draw. Overwrites the logits.
    """
    logits.masked_fill_(rules.never, -torch.inf)
    too_young = (age < MIN_DOCUMENT)[:, None]
    logits[:, rules.ends] = logits[:, rules.ends].masked_fill(too_young, -torch.inf)
    top, ids = logits.topk(min(TOP_K, logits.shape[1]))
    cumulative = top.double().softmax(-1).cumsum(-1)
    # Divided by its end so that the last entry is exactly 1, above every draw.
    rank = (cumulative / cumulative[:, -1:] <= draws[:, None]).sum(-1)
    rank = torch.where(greedy, 0, rank)
    return ids.gather(1, rank[:, None])[:, 0], ~cumulative.isnan().any()
