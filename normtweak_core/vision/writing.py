"""Calibration windows that begin with an image, and go on as the model itself writes about it.

Of each image the model's own processor makes tokens and pixels; the text given with it follows, and
what is left of the window is written by the model that sees both, as calibration text is: seeded,
with the noise of (seed, window, position), of the likeliest tokens, and no special ones. All
windows are laid out alike (`ImageWindows`): where images of different sizes take different tokens,
all are cut to squares of one size first.
"""

import inspect
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Bool, Float64, Int64
from PIL import Image, ImageOps
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.calibration.cache import cache_name, window_bytes, windows_at_once
from normtweak_core.calibration.first_token import ordinary_token_ids
from normtweak_core.calibration.generate import TOP_K, uniforms
from normtweak_core.calibration.known_ids import require_known_ids
from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.randomness import generator
from normtweak_core.vision.images import KEY, Given, enough_images, open_image
from normtweak_core.vision.kinds import image_token_ids
from normtweak_core.vision.processor import Prompt, load_processor, processed
from normtweak_core.vision.windows import ImageWindows

FEWEST_TEXT = 8  # tokens of a window behind its image

Progress = Callable[[int, int], None]


@torch.no_grad()
def write_image_windows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    images: str,
    samples: int,
    length: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[ImageWindows, dict[str, object]]:
    """Return windows that begin with an image each, and what is known of them.

    Args:
        model: Float model in eval mode.
        tokenizer: Its tokenizer.
        folder: Where its processor is.
        images: The folder of images, or the .jsonl, as a recipe names it.
        samples: Windows; as many images are drawn, none of them twice.
        length: Tokens of each window.
        seed: Of the recipe.
        progress: Called with (tokens written, tokens in all).

    Raises:
        InputError: There are too few images, one cannot be read, the processor does not take them,
            or an image leaves no room for text.
        NonFiniteError: The model's logits are NaN.
    """
    found = enough_images(images, samples)
    order = torch.randperm(len(found), generator=generator(seed, "calibration images"))
    chosen = [found[number] for number in order[:samples].tolist()]
    tokens = image_token_ids(model.config)
    prompts, side = _alike(load_processor(folder), chosen, tokens)
    for prompt in prompts:
        text = prompt.input_ids[~torch.isin(prompt.input_ids, torch.tensor(tokens))]
        require_known_ids(text, model, tokenizer, "what the processor makes of an image")
    columns = prompts[0].columns(tokens)
    end = columns[-1] + 1
    if end + FEWEST_TEXT > length:
        raise InputError(
            f"must leave room for text of {FEWEST_TEXT} tokens behind an image",
            key="calibration.length",
            found=f"it is {length}, and an image ends at token {end}",
            remedy="raise it",
        )
    never = torch.ones(model.get_output_embeddings().weight.shape[0], dtype=torch.bool)
    never[ordinary_token_ids(tokenizer, len(never))] = False
    never[[token for token in tokens if token < len(never)]] = True
    ids = _written(model, prompts, never, length, seed, progress)
    is_text = torch.ones(length, dtype=torch.bool)
    is_text[columns] = False
    windows = ImageWindows(ids, _joined(prompts, length), is_text)
    return windows, {"image_tokens": len(columns), "cut_to_squares_of": side}


def _alike(
    processor: object, chosen: list[Given], tokens: list[int]
) -> tuple[list[Prompt], int | None]:
    """Return prompts that are laid out alike, and the side of the squares that images were cut to.

    The side is that of the image in the middle, so that one small image makes no other small;
    None: the images are as they were given.
    """
    prompts = [processed(processor, given, open_image(given)) for given in chosen]
    side = None
    if len({prompt.layout(tokens) for prompt in prompts}) > 1:
        side = statistics.median_low(min(open_image(given).size) for given in chosen)
        fitted = (ImageOps.fit(open_image(one), (side, side), Image.BICUBIC) for one in chosen)
        prompts = [
            processed(processor, given, image) for given, image in zip(chosen, fitted, strict=True)
        ]
    for prompt, given in zip(prompts, chosen, strict=True):
        if not prompt.columns(tokens):
            raise InputError(
                "must become tokens that stand for an image",
                key=KEY,
                found=f"the processor makes none of {given.where}",
            )
        if (odd := prompt.odd_types(tokens)) is not None:
            raise InputError(
                "is for models whose masks tell the tokens of an image alone from text",
                key=KEY,
                found=f"the {odd} of its processor mark others too, as PaliGemma's mark a prompt",
                remedy="remove it, and calibrate on text alone",
            )
        if prompt.layout(tokens) != prompts[0].layout(tokens):
            raise InputError(
                "must take the same tokens in every window, at the same place",
                key=KEY,
                found=f"{given.where} does not, cut to a square of {side} pixels",
                remedy="put the image first in every text, one in each",
            )
    return prompts, side


def _joined(prompts: list[Prompt], length: int) -> dict[str, Tensor]:
    """Return what goes with all windows; what there is for each token is 0 behind the image."""
    inputs = {
        name: torch.cat([prompt.inputs[name] for prompt in prompts]) for name in prompts[0].inputs
    }
    for name, first in prompts[0].by_token.items():
        rows = torch.zeros(len(prompts), length, dtype=first.dtype)
        for row, prompt in zip(rows, prompts, strict=True):
            part = prompt.by_token[name][0, :length]
            row[: len(part)] = part
        inputs[name] = rows
    return inputs


def _written(
    model: PreTrainedModel,
    prompts: list[Prompt],
    never: Bool[Tensor, " vocab"],
    length: int,
    seed: int,
    progress: Progress | None,
) -> Int64[Tensor, "windows length"]:
    """Return full windows; those whose prompts are as long are written together."""
    by_size, done = defaultdict(list), 0
    for number, prompt in enumerate(prompts):
        by_size[min(prompt.input_ids.shape[1], length)].append(number)
    most = windows_at_once(window_bytes(model, length), len(prompts), str(model.device))
    ids = torch.empty(len(prompts), length, dtype=torch.int64)
    for size, numbers in sorted(by_size.items()):
        for start in range(0, len(numbers), most):
            part = numbers[start : start + most]
            draws = torch.cat([uniforms(seed, range(n, n + 1), length) for n in part])[..., 0]
            asked = [prompts[number] for number in part]
            given = torch.cat([prompt.input_ids[:, :size] for prompt in asked])
            ids[part] = _continued(model, given, _joined(asked, size), draws, never)
            done += len(part)
            if progress:
                progress(done * length, len(prompts) * length)
    return ids


def _continued(
    model: PreTrainedModel,
    ids: Int64[Tensor, "windows prompt"],
    inputs: dict[str, Tensor],
    draws: Float64[Tensor, "windows length"],
    never: Bool[Tensor, " vocab"],
) -> Int64[Tensor, "windows length"]:
    """Return the prompts and what the model writes behind them, to the length of the draws."""
    device, name = model.device, cache_name(model)
    never, draws, ids = never.to(device), draws.to(device), ids.to(device)
    last = {"logits_to_keep": 1}
    last = last if last.keys() <= inspect.signature(model.forward).parameters.keys() else {}
    given = {key: value.to(device) for key, value in inputs.items()} | {"input_ids": ids}
    while ids.shape[1] < draws.shape[1]:
        out = model(**given, **last, use_cache=True)
        logits = out.logits[:, -1].float().masked_fill(never, -torch.inf)
        top, tokens = logits.topk(min(TOP_K, int((~never).sum())))
        shares = top.double().softmax(-1).cumsum(-1)
        if shares.isnan().any():
            raise NonFiniteError(
                "the float model must give finite logits; they became NaN while it wrote about an "
                "image: check its weights and model.dtype"
            )
        rank = (shares / shares[:, -1:] <= draws[:, ids.shape[1], None]).sum(-1)
        ids = torch.cat([ids, tokens.gather(1, rank[:, None])], dim=1)
        given = {"input_ids": ids[:, -1:], name: out[name]}
    return ids.cpu()
