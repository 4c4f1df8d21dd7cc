"""Models that read images beside text, as config.json tells them; no torch.

Of such a model the text tower is quantized, calibrated and measured, as if it were a model of its
own; what reads images (vision tower, projector) stays in float.
"""

from collections.abc import Mapping
from typing import Any

from normtweak_core.errors import InputError

SUFFIX = "ForConditionalGeneration"
# Of a config: the tokens in whose place a model puts what it sees.
IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
IMAGE_TEXT_CLASS, TEXT_CLASS = "AutoModelForImageTextToText", "AutoModelForCausalLM"


def reads_images(config: Mapping[str, Any]) -> bool:
    """Say whether a config.json is that of a model with a vision tower beside its text tower."""
    found = config.get("architectures") or []
    vision = config.get("vision_config")
    return isinstance(vision, dict) and any(name.endswith(SUFFIX) for name in found)


def auto_class(config: Mapping[str, Any]) -> str:
    """Return the name of the class of transformers that opens the model of a config.json."""
    return IMAGE_TEXT_CLASS if reads_images(config) else TEXT_CLASS


def refuse_images(config: Mapping[str, Any], what: str) -> None:
    """Accept the config.json of a model that reads text alone.

    Args:
        config: As it is read from the file.
        what: That cannot be done with others.

    Raises:
        InputError: The model reads images.
    """
    if reads_images(config):
        raise InputError(
            f"{what} needs a model that reads text alone; this one reads images as well "
            f"({', '.join(config['architectures'])}), which can be quantized (normtweak quantize). "
            "Choose another model."
        )


def image_token_ids(config: object) -> list[int]:
    """Return the ids that stand for images and videos, of a config as transformers has it."""
    found = (getattr(config, name, None) for name in IMAGE_TOKENS)
    return sorted({token for token in found if isinstance(token, int)})


def calibrated_in_words(image_windows: int, image_tokens: int = 0) -> str:
    """Return what a model that reads images was calibrated on, and what stays in float.

    Args:
        image_windows: Windows that begin with an image; 0: none did.
        image_tokens: Tokens of each of them that are the image's.
    """
    if not image_windows:
        return (
            "vision tower and projector stay in float; the text tower is calibrated and measured "
            "on text alone, which tells nothing of what images bring into it"
        )
    return (
        "vision tower and projector stay in float; the text tower is calibrated on "
        f"{image_windows} windows of an image and text ({image_tokens} tokens of each are the "
        "image's), and measured on text alone"
    )


def check_image_recipe(images: str | None, several_widths: bool, config: Mapping[str, Any]) -> None:
    """Accept a recipe whose images the model of a config.json can be calibrated with.

    Args:
        images: What the recipe names; None: nothing.
        several_widths: Whether widths are left to a budget.
        config: As it is read from the file.

    Raises:
        InputError: The model reads none, or widths would be measured with them.
    """
    if images is None:
        return
    if not reads_images(config):
        raise InputError(
            "is for a model that reads images",
            key="calibration.images",
            found=f"this one reads text alone ({', '.join(config.get('architectures') or [])})",
            remedy="remove it, or choose another model",
        )
    if config["vision_config"].get("deepstack_visual_indexes"):
        raise InputError(
            "is for a model that puts images in front of its first block",
            key="calibration.images",
            found=f"{config['architectures'][0]} adds them between its blocks as well",
            remedy="remove it, and calibrate on text alone",
        )
    if several_widths:
        raise InputError(
            "must be one width with calibration.images, for widths are measured on text alone",
            key="quantization.bits",
            found="found an average of several",
            remedy="set one width, or remove calibration.images",
        )
