"""What the model's own processor makes of an image and a text: the inputs of the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import AutoProcessor

from normtweak_core.errors import InputError
from normtweak_core.model.architecture import first_line, readable_by_transformers
from normtweak_core.vision.images import KEY, Given

RAISED = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)


@dataclass(frozen=True)
class Prompt:
    """An image and its text as the model takes them.

    Attributes:
        input_ids: A row of tokens, those of the image among them.
        inputs: What goes with the image.
        by_token: What there is for each token beside its id.
    """

    input_ids: Int64[Tensor, "1 tokens"]
    inputs: dict[str, Tensor]
    by_token: dict[str, Tensor]

    def columns(self, image_ids: list[int]) -> list[int]:
        """Return the columns that are the image's."""
        is_image = torch.isin(self.input_ids[0], torch.tensor(image_ids))
        return is_image.nonzero()[:, 0].tolist()

    def odd_types(self, image_ids: list[int]) -> str | None:
        """Return what marks other tokens than those of images, of which masks follow; or None."""
        is_image = torch.isin(self.input_ids, torch.tensor(image_ids))
        odd = (name for name, one in self.by_token.items() if not torch.equal(one != 0, is_image))
        return next(odd, None)

    def layout(self, image_ids: list[int]) -> tuple[Any, ...]:
        """Return what all windows must have in common: where the image is, and of which size."""
        columns = self.columns(image_ids)
        end = columns[-1] + 1 if columns else 0
        sizes = [
            (name, tuple(one.shape), None if one.is_floating_point() else one.tolist())
            for name, one in sorted(self.inputs.items())
        ]
        types = [(name, one[0, :end].tolist()) for name, one in sorted(self.by_token.items())]
        return tuple(columns), str(sizes), str(types)


def load_processor(folder: Path) -> Any:
    """Return the processor of a folder, as ``from_pretrained`` makes it.

    Raises:
        InputError: There is none for images that the code in transformers can read.
    """
    remedy = "save it beside the model with save_pretrained, or calibrate on text alone"
    try:
        with readable_by_transformers(folder) as readable:
            processor = AutoProcessor.from_pretrained(
                readable, local_files_only=True, trust_remote_code=False
            )
    except RAISED as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            "needs the processor of the model",
            key=KEY,
            found=f"that of {folder} cannot be opened: {why}",
            remedy=f"install what it asks for (torchvision, where it reads videos), or {remedy}",
        ) from error
    if getattr(processor, "image_processor", None) is None:
        raise InputError(
            "needs the processor of the model",
            key=KEY,
            found=f"{folder} holds none for images",
            remedy=remedy,
        )
    return processor


def processed(processor: Any, given: Given, image: Any) -> Prompt:
    """Return an image and its text as inputs of the model.

    A text that holds the token of an image is taken as it is. Any other goes behind the image: by
    the chat template as what a person says, or else in a new line.

    Raises:
        InputError: The processor does not take them.
    """
    marks = [getattr(processor, name, None) for name in ("boi_token", "image_token")]
    marks = [str(mark) for mark in marks if mark]
    templated = False
    text = given.text
    try:
        if not any(mark in text for mark in marks):
            templated = bool(getattr(processor, "chat_template", None))
            text = _chat(processor, text) if templated else f"{(marks or [''])[0]}\n{text}"
        found = processor(
            images=[image], text=[text], return_tensors="pt", add_special_tokens=not templated
        )
    except RAISED as error:
        raise InputError(
            "must hold images and texts that the model's processor takes",
            key=KEY,
            found=f"{given.where} ends in {type(error).__name__}: {first_line(error)}",
        ) from error
    found = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    ids = found.pop("input_ids")
    for unread in ("attention_mask", "labels"):  # all of it is read, and nothing is learnt here
        found.pop(unread, None)
    by_token = {name: one for name, one in found.items() if one.shape == ids.shape}
    inputs = {name: one for name, one in found.items() if name not in by_token}
    return Prompt(ids, inputs, by_token)


def _chat(processor: Any, text: str) -> str:
    parts = [{"type": "image"}] + [{"type": "text", "text": text}] * bool(text)
    chat = [{"role": "user", "content": parts}]
    return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
