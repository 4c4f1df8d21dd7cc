"""Calibration windows that hold an image each, in the place of a tensor of token ids.

All of them are laid out alike: the tokens of the image stand in the same columns, so that the model
gives every window the same positions and masks, and what it says to its blocks of one batch is
right for any other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True)
class ImageWindows:
    """Token ids, and what the model takes beside them to put images in their place.

    It is cut as a tensor of windows is: by slices, and by ``split``.

    Attributes:
        input_ids: One row a window; each token of an image has the id that stands for one.
        inputs: By the names of the model's arguments; of each as many rows for every window.
        is_text: Which columns are no image's.
    """

    input_ids: Int64[Tensor, "windows length"]
    inputs: dict[str, Tensor]
    is_text: Bool[Tensor, " length"]

    @property
    def shape(self) -> torch.Size:
        """Windows and tokens."""
        return self.input_ids.shape

    @property
    def device(self) -> torch.device:
        """Where the ids lie."""
        return self.input_ids.device

    @property
    def text(self) -> Int64[Tensor, "windows text"]:
        """The tokens that are no image's."""
        return self.input_ids[:, self.is_text]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, part: slice) -> "ImageWindows":
        start, stop, _ = part.indices(len(self))
        rows = {name: len(value) // len(self) for name, value in self.inputs.items()}
        inputs = {n: value[start * rows[n] : stop * rows[n]] for n, value in self.inputs.items()}
        return ImageWindows(self.input_ids[start:stop], inputs, self.is_text)

    def split(self, size: int) -> tuple["ImageWindows", ...]:
        """Return parts of so many windows."""
        return tuple(self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: str | torch.device) -> "ImageWindows":
        """Return the same on a device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return ImageWindows(self.input_ids.to(device), inputs, self.is_text)


Windows = Tensor | ImageWindows  # token ids of shape [windows, length], or these with images


def model_inputs(windows: Windows) -> dict[str, Tensor]:
    """Return the arguments with which a model reads some windows."""
    if isinstance(windows, ImageWindows):
        return {"input_ids": windows.input_ids, **windows.inputs}
    return {"input_ids": windows}


def token_ids(windows: Windows) -> Int64[Tensor, "windows length"]:
    """Return the ids of some windows."""
    return windows.input_ids if isinstance(windows, ImageWindows) else windows


def one_by_one(windows: Windows) -> Iterator[Windows]:
    """Yield each window by itself."""
    yield from windows.split(1)


def of_text(values: Tensor, windows: Windows, start: int = 0) -> Tensor:
    """Return what belongs to the columns of text alone, of values of shape [windows, length, ...].

    Args:
        values: Of the columns from ``start`` on.
        windows: That they belong to.
        start: The first column.
    """
    if not isinstance(windows, ImageWindows):
        return values
    return values[:, windows.is_text[start : start + values.shape[1]].to(values.device)]
