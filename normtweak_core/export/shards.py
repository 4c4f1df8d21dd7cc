"""Writes tensors to safetensors files of bounded size, with an index where there are several."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from normtweak_core.export.folder import sync, write_json
from normtweak_core.export.manifest import raw_bytes
from normtweak_core.model.checkpoint import StoredTensor
from normtweak_core.stored import TYPE_NAMES, read_tensor

# More keys would be written in random order.
METADATA = {"format": "pt"}
SINGLE = "model.safetensors"
ALIGNMENT = 16  # bytes; no number is larger


class ShardWriter:
    """Collects tensors and writes a file whenever the next one would exceed the limit.

    They are collected on disk: the library must have all of a file at hand, in an order of its own.
    A tensor larger than the limit becomes a file of its own.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self._folder = folder
        self._max_bytes = max_bytes
        self._pending: dict[str, StoredTensor] = {}
        self._pending_bytes = 0
        self._names: list[list[str]] = []  # tensor names of each written shard
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; it is in its file once ``finish`` returns."""
        if self._pending and self._pending_bytes + tensor.nbytes > self._max_bytes:
            self._flush()
        with self._collected.open("ab") as file:
            file.write(bytes(-file.tell() % ALIGNMENT))
            start = file.tell()
            file.write(raw_bytes(tensor))
        kind, shape = TYPE_NAMES[tensor.dtype], tuple(tensor.shape)
        place = StoredTensor(self._collected, kind, shape, start, start + tensor.nbytes)
        self._pending[name] = place
        self._pending_bytes += tensor.nbytes
        self._total_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write what is left, give the files their final names and write the index."""
        self._flush()
        count = len(self._names)
        if count == 1:
            self._temporary(0).rename(self._folder / SINGLE)
            return
        weight_map = {}
        for i, names in enumerate(self._names):
            final = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            self._temporary(i).rename(self._folder / final)
            weight_map |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        write_json(self._folder / f"{SINGLE}.index.json", index)

    def _flush(self) -> None:
        path = self._temporary(len(self._names))
        tensors = {name: read_tensor(place) for name, place in self._pending.items()}
        save_file(tensors, path, metadata=METADATA)
        path.chmod(0o644)  # the library makes it readable for its owner only
        sync(path)
        self._collected.unlink()
        self._names.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    @property
    def _collected(self) -> Path:
        return self._folder / "collected.partial"

    def _temporary(self, shard: int) -> Path:
        return self._folder / f"shard-{shard}.partial"
