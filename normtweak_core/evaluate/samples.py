"""What two models write: the same prompts continued by both, for people to read side by side.

Prompts are beginnings of windows that are evaluated anyway, so that every language has one.
Greedy and without a cache of keys and values: equal models write equal texts, and every
architecture that is evaluated can write.
"""

import torch
from jaxtyping import Int64
from pydantic import BaseModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.model.streaming import StreamedModel

NUM_PROMPTS, MOST_TOKENS = 3, 32  # tokens of a prompt, and of its continuation


class Sample(BaseModel, frozen=True):
    """A prompt and its continuations."""

    prompt: str
    float_text: str
    quantized_text: str


Writer = PreTrainedModel | StreamedModel


def written(
    model: Writer, tokenizer: PreTrainedTokenizerBase, windows: Int64[Tensor, "windows length"]
) -> list[str]:
    """Return what a model makes of the beginnings of some windows.

    Args:
        model: In eval mode. One that is read block by block reads all of them again for each token
            but those that it keeps, `normtweak_core.model.streaming.KEPT_BYTES` of them.
        tokenizer: Its own.
        windows: Token ids; prompts are taken evenly over them.
    """
    prompts = _prompts(windows)
    return [
        _decoded(tokenizer, ids) for ids in _continued(model, prompts, prompts.shape[1]).tolist()
    ]


def side_by_side(
    quantized_texts: list[str],
    float_texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    windows: Int64[Tensor, "windows length"],
) -> list[Sample]:
    """Return what two models have `written`, each text with its prompt."""
    prompts = [_decoded(tokenizer, ids) for ids in _prompts(windows).tolist()]
    return [
        Sample(prompt=prompt, float_text=first, quantized_text=second)
        for prompt, first, second in zip(prompts, float_texts, quantized_texts, strict=True)
    ]


def _prompts(windows: Int64[Tensor, "windows length"]) -> Int64[Tensor, "prompts given"]:
    count, length = windows.shape
    chosen = sorted({count * place // NUM_PROMPTS for place in range(NUM_PROMPTS)})
    return windows[chosen, : min(MOST_TOKENS, length // 2)]


@torch.inference_mode()
def _continued(
    model: Writer, prompts: Int64[Tensor, "prompts given"], new_tokens: int
) -> Int64[Tensor, "prompts new"]:
    ids = prompts.to(model.device)
    for _ in range(new_tokens):
        if isinstance(model, StreamedModel):
            logits = model.logits(ids)
        else:
            logits = model(input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids[:, prompts.shape[1] :].cpu()


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of some ids, as far as the first that ends a text."""
    end = tokenizer.eos_token_id
    if end is not None and end in ids[1:]:
        ids = ids[: ids.index(end, 1)]
    return tokenizer.decode(ids, skip_special_tokens=True)
