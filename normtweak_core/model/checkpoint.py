"""Where the tensors of a safetensors folder lie, read from file headers alone; no torch."""

import json
import math
import operator
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.given_files import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000  # bytes; the safetensors library refuses longer headers too
BITS = {"F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4}
BITS |= {"BOOL": 8, "U8": 8, "I8": 8, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16}
BITS |= {"BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}


FLOATS = ("F16", "BF16", "F32", "F64")
TORCH_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
CODES = re.compile("F[468]_|F4$")  # floats of so few bits that a scale belongs to them


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: ``file[start:end]``, row-major, little-endian."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte offset from the beginning of the file
    end: int


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that ``from_pretrained`` would read, sorted.

    Raises:
        InputError: There is none, or the index is unreadable or names a file that is absent.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return _indexed_files(folder)
    found = sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors")
    if found:
        raise InputError(
            f"{folder} must hold {SINGLE_FILE} or {INDEX_FILE}; it holds {found[0]}. "
            "Save the model again with save_pretrained."
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise InputError(
            f"{folder} must hold safetensors weights; it holds only pickled ones, which are never "
            "opened here. Save the model again with save_pretrained."
        )
    raise InputError(
        f"{folder} must hold {SINGLE_FILE} or {INDEX_FILE}; it holds neither. "
        "Give the folder that save_pretrained wrote."
    )


def stored_names(folder: Path) -> list[str]:
    """Return the names of the folder's tensors as far as its index or its single file tells them.

    Empty where neither is there yet: of a hub model the index is fetched before the weights.

    Raises:
        InputError: The file is damaged.
    """
    if (folder / SINGLE_FILE).is_file():
        return list(read_header(folder / SINGLE_FILE))
    return list(_weight_map(folder)) if (folder / INDEX_FILE).is_file() else []


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return every tensor of the folder by its name, from the headers alone.

    Raises:
        InputError: A file is absent, truncated or not safetensors, two files hold one name, or
            the index names a tensor that is not where it says.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise InputError(
                    f"each tensor must be stored once; {name} is in {tensors[name].file} and in "
                    f"{path}. Remove the file that does not belong to this model."
                )
            tensors[name] = tensor
    if not (folder / SINGLE_FILE).is_file():
        for name, file in _weight_map(folder).items():
            if name not in tensors or tensors[name].file.name != file:
                raise InputError(
                    f"{folder / INDEX_FILE} must say where each tensor lies; it says that {name} "
                    f"is in {file}, which does not hold it. Fetch or save the model again."
                )
    return tensors


def stored_dtype(folder: Path) -> str:
    """Return the float type, as torch names it, that most weights of a folder are stored in.

    Raises:
        InputError: A file is absent or damaged, or no weight is a float.
    """
    counts = Counter[str]()
    for tensor in stored_tensors(folder).values():
        if tensor.dtype in FLOATS:
            counts[tensor.dtype] += math.prod(tensor.shape)
    if not counts:
        raise InputError(f"the weights must be floats; none of {folder} is: give a float model")
    return TORCH_NAMES[counts.most_common(1)[0][0]]


def check_floats(folder: Path) -> None:
    """Accept weight files whose headers show no quantized weights; a folder without any as well.

    Which other tensors the model does not use, only its class in transformers can tell.

    Raises:
        InputError: A weight is stored in integers or in floats of 8 bits and less, or a file is
            damaged.
    """
    if not any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        return
    coded = {
        name: tensor
        for name, tensor in stored_tensors(folder).items()
        if CODES.match(tensor.dtype)
        or (tensor.dtype not in FLOATS and name.endswith(".weight") and len(tensor.shape) > 1)
    }
    if coded:
        raise no_float(folder, coded)


def no_float(folder: Path, coded: dict[str, StoredTensor]) -> InputError:
    """Return the error for weights that are stored as something else than plain floats."""
    name, tensor = next(iter(coded.items()))
    return InputError(
        f"every weight must be stored as {', '.join(FLOATS)}; {len(coded)} of {folder} "
        f"{'is' if len(coded) == 1 else 'are'} not, {name} ({tensor.dtype}) first: the model is "
        "quantized. Give the float model it was made from."
    )


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one safetensors file by name.

    Raises:
        InputError: The file is not safetensors, or its length is not what its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, HEADER_LIMIT):
            raise _damaged(path, f"its header of {length} bytes does not fit its {size} bytes")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {
            name: StoredTensor(
                path,
                str(entry["dtype"]),
                tuple(operator.index(extent) for extent in entry["shape"]),
                *(8 + length + operator.index(offset) for offset in entry["data_offsets"]),
            )
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "its header is not a table of tensors") from error
    _check_ranges(path, tensors, 8 + length, size)
    return tensors


def _check_ranges(path: Path, tensors: dict[str, StoredTensor], begin: int, size: int) -> None:
    """Raise InputError unless the tensors fill ``begin .. size`` without gap or overlap."""
    position = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.dtype not in BITS:
            raise _damaged(path, f"{name} has the unknown dtype {tensor.dtype}")
        expected = math.prod(tensor.shape) * BITS[tensor.dtype] // 8
        if tensor.start != position or tensor.end - tensor.start != expected:
            raise _damaged(path, f"the bytes of {name} do not match its shape and dtype")
        position = tensor.end
    if position != size:
        raise _damaged(path, f"its header describes {position} bytes and it has {size}")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} must be a complete safetensors file; {what}. Fetch or save the model again."
    )


def _weight_map(folder: Path) -> dict[str, str]:
    """Return the shard of each tensor, as the folder's index has it."""
    index = folder / INDEX_FILE
    places = read_json_object(index, "fetch or save the model again").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(one, str) for one in places.values()):
        raise InputError(
            f"{index} must be a JSON object with a weight_map of file names; it is not. "
            "Fetch or save the model again."
        )
    return places


def _indexed_files(folder: Path) -> list[Path]:
    """Return the shards that the folder's index names."""
    index, names = folder / INDEX_FILE, set(_weight_map(folder).values())
    for name in sorted(names):
        if Path(name).name != name:
            raise InputError(f"{index} must name files of its own folder; it names {name!r}.")
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} must hold every file its index names; {name} is absent. "
                "Fetch or save the model again."
            )
    return [folder / name for name in sorted(names)]
