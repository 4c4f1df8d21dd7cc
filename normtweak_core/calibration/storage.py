"""A calibration set on disk: one safetensors file.

``input_ids`` are int64; where windows hold images, ``is_text`` is bool and ``input.NAME`` are the
model's other inputs; the source and its facts are UTF-8 JSON in the uint8 tensor ``facts``, as
safetensors writes metadata of more than one key in random order.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from normtweak_core.calibration.sets import CalibrationSet
from normtweak_core.errors import InputError
from normtweak_core.vision.windows import ImageWindows

INPUT = "input."


def save_calibration_set(path: Path, calibration_set: CalibrationSet) -> None:
    """Write a calibration set; equal sets give equal bytes. The folder must exist.

    Writes at ``path`` itself: who must not be left with half a file gives a temporary path.
    """
    facts = {"source": calibration_set.source, "facts": calibration_set.facts}
    encoded = json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()
    tensors = {
        "input_ids": calibration_set.input_ids.contiguous(),
        "facts": torch.frombuffer(bytearray(encoded), dtype=torch.uint8),
    }
    if (images := calibration_set.images) is not None:
        tensors["is_text"] = images.is_text
        tensors |= {f"{INPUT}{name}": one.contiguous() for name, one in images.inputs.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def load_calibration_set(path: Path) -> CalibrationSet:
    """Return a calibration set as it was saved.

    Raises:
        InputError: The file is missing, torn, or no calibration set.
    """
    if not path.is_file():
        raise InputError(f"calibration set {path} does not exist: build it again")
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise InputError(
            f"calibration set {path} must be a safetensors file; {error}: build it again"
        ) from error
    inputs = {name for name in names if name.startswith(INPUT)}
    if names - inputs != {"input_ids", "facts"} | ({"is_text"} if inputs else set()):
        raise InputError(
            f"calibration set {path} must hold the tensors input_ids and facts; found "
            f"{', '.join(sorted(names))}: build it again"
        )
    facts = json.loads(tensors["facts"].numpy().tobytes())
    ids, images = tensors["input_ids"], None
    if inputs:
        beside = {name.removeprefix(INPUT): tensors[name] for name in sorted(inputs)}
        images = ImageWindows(ids, beside, tensors["is_text"])
    return CalibrationSet(ids, facts["source"], facts["facts"], images)
