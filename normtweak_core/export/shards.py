"""Writes tensors to safetensors files of bounded size, with an index where there are several."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from normtweak_core.export.folder import sync, write_json

# More keys would be written in random order.
METADATA = {"format": "pt"}
SINGLE = "model.safetensors"


class ShardWriter:
    """Collects tensors and writes a file whenever the next one would exceed the limit.

    At most one shard is in memory. A tensor larger than the limit becomes a file of its own.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self._folder = folder
        self._max_bytes = max_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._memory: set[int] = set()  # where the pending tensors lie
        self._names: list[list[str]] = []  # tensor names of each written shard
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; it is on disk once ``finish`` returns."""
        if self._pending and self._pending_bytes + tensor.nbytes > self._max_bytes:
            self._flush()
        tensor = tensor.contiguous()
        memory = tensor.untyped_storage().data_ptr()
        # The library refuses two names for one piece of memory, such as gains that are shared.
        self._pending[name] = tensor.clone() if memory in self._memory else tensor
        self._memory.add(memory)
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
        save_file(self._pending, path, metadata=METADATA)
        path.chmod(0o644)  # the library makes it readable for its owner only
        sync(path)
        self._names.append(list(self._pending))
        self._pending, self._pending_bytes, self._memory = {}, 0, set()

    def _temporary(self, shard: int) -> Path:
        return self._folder / f"shard-{shard}.partial"
