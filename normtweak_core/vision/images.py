"""Images that a person gives to calibrate with: a folder of them, or a .jsonl; no torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normtweak_core.errors import InputError
from normtweak_core.given_files import numbered_lines, parse_json, read_utf8
from normtweak_core.lazy import lazy
from normtweak_core.paths import given_path

pillow, operations = lazy("PIL.Image"), lazy("PIL.ImageOps")

KEY = "calibration.images"
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Given:
    """An image, and the text that goes with it."""

    image: Path
    text: str
    where: str  # file, and line where it is one of several there


def read_images(path: str) -> list[Given]:
    """Return the images of a folder, by name, or of a .jsonl, in its order.

    Each line of a .jsonl is an object with ``image``, a path from the folder of the file, and,
    where there is one, ``text``: what is said to the model about it.

    Raises:
        InputError: There is no such folder or file, it holds no image, or a line is something else.
    """
    place = given_path(path, KEY)
    if place.is_dir():
        files = (file for file in place.iterdir() if file.suffix.lower() in KINDS)
        found = [Given(file, "", str(file)) for file in sorted(files)]
    elif place.is_file() and place.suffix.lower() == ".jsonl":
        lines = numbered_lines(read_utf8(place, "list of images"))
        found = [_given(line, place, number) for number, line in lines]
    else:
        raise InputError(
            "must be a folder of images or a .jsonl file",
            key=KEY,
            found=f"{place} is neither" if place.exists() else f"{place} does not exist",
            remedy="check the path",
        )
    if not found:
        raise InputError(
            f"must hold images ({', '.join(KINDS)})", key=KEY, found=f"{place} holds none"
        )
    return found


def check_images(path: str | None, samples: int) -> None:
    """Accept as many images as windows are asked for, all of which can be opened.

    Args:
        path: As `read_images`; None: there are none to open.
        samples: Windows.

    Raises:
        InputError: As `read_images`, or there are too few, or one is missing or damaged.
    """
    if path is not None:
        for given in enough_images(path, samples):
            open_image(given)


def enough_images(path: str, samples: int) -> list[Given]:
    """Return all images, which are at least as many as windows.

    Raises:
        InputError: As `read_images`, or there are fewer.
    """
    found = read_images(path)
    if len(found) < samples:
        raise InputError(
            f"asks for {samples} windows with an image each",
            key="calibration.samples",
            found=f"{path} holds {len(found)} images",
            remedy="give more images, or lower samples",
        )
    return found


def open_image(given: Given) -> Any:
    """Return an image in three colours, the right way up.

    Raises:
        InputError: It is missing, or cannot be read.
    """
    if not given.image.is_file():
        raise InputError(
            "must name images that are there",
            key=KEY,
            found=f"{given.where} names {given.image}, which does not exist",
        )
    try:
        with pillow.open(given.image) as image:
            upright = operations.exif_transpose(image)  # as a camera was held
            if upright.mode.startswith("I;16"):  # to which Pillow knows no other way
                upright = upright.point(lambda value: value / 257).convert("L")
            return upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise InputError(
            "must hold images that can be read",
            key=KEY,
            found=f"{given.image} cannot: {' '.join(str(error).split())}",
            remedy="save it again as PNG or JPEG, or leave it out",
        ) from error


def images_content(path: str) -> str:
    """Return one SHA-256 over the images, their order and their texts, wherever they lie.

    Raises:
        InputError: As `read_images`, or one is missing.
    """
    digest = hashlib.sha256()
    for given in read_images(path):
        if not given.image.is_file():
            open_image(given)
        with given.image.open("rb") as file:
            image = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{image} {len(given.text.encode())} {given.text}\n".encode())
    return digest.hexdigest()


def _given(line: str, place: Path, number: int) -> Given:
    row, where = parse_json(line, str(place), "check the file", number), f"{place} line {number}"
    text = row.get("text", "") if isinstance(row, dict) else None
    if not isinstance(text, str) or not isinstance(row.get("image"), str) or not row["image"]:
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise InputError(
            f'{where} must be an object with a string field "image" and, if any, "text"; found '
            f"{found}"
        )
    return Given(place.parent / row["image"], text, where)
