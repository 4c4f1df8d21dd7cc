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

NUM_PROMPTS, MOST_TOKENS = 3, 32  # tokens of a prompt, and of its continuation


class Sample(BaseModel, frozen=True):
    """A prompt and its continuations."""

    prompt: str
    float_text: str
    quantized_text: str


def side_by_side(
    quantized_model: PreTrainedModel,
    float_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Int64[Tensor, "windows length"],
) -> list[Sample]:
    """Return what both models make of the beginnings of some windows.

    Args:
        quantized_model: In eval mode, as the float model.
        float_model: The one it was made from.
        tokenizer: Of both.
        windows: Token ids; prompts are taken evenly over them.
    """
    count, length = windows.shape
    given = min(MOST_TOKENS, length // 2)
    chosen = sorted({count * place // NUM_PROMPTS for place in range(NUM_PROMPTS)})
    prompts = windows[chosen, :given]
    texts = [
        [_decoded(tokenizer, ids) for ids in _continued(model, prompts, given).tolist()]
        for model in (float_model, quantized_model)
    ]
    return [
        Sample(prompt=_decoded(tokenizer, ids), float_text=first, quantized_text=second)
        for ids, first, second in zip(prompts.tolist(), *texts, strict=True)
    ]


@torch.inference_mode()
def _continued(
    model: PreTrainedModel, prompts: Int64[Tensor, "prompts given"], new_tokens: int
) -> Int64[Tensor, "prompts new"]:
    ids = prompts.to(model.device)
    for _ in range(new_tokens):
        logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids[:, prompts.shape[1] :].cpu()


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of some ids, as far as the first that ends a text."""
    end = tokenizer.eos_token_id
    if end is not None and end in ids[1:]:
        ids = ids[: ids.index(end, 1)]
    return tokenizer.decode(ids, skip_special_tokens=True)
