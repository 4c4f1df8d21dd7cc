"""The finished blocks of a run, read lazily under the names that layers have in the whole model."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.storage import load_block
from normtweak_core.quantization.weight import QuantizedWeight
from tasks.engine.environment import state_root
from tasks.results import BlockResult, FinalTuneResult, WidthsResult

if TYPE_CHECKING:
    from torch import Tensor


class QuantizedLayers(Mapping[str, QuantizedWeight]):
    """Every quantized linear by its full name; one block is in memory at a time."""

    def __init__(
        self,
        prefix: str,
        blocks: list[BlockResult],
        config: QuantizationConfig,
        tuned: FinalTuneResult | None = None,
        widths: WidthsResult | None = None,
    ):
        """Read ``blocks``, whose list is called ``prefix`` in the model, and what was tuned.

        Where ``config`` leaves their widths open, these are given.
        """
        own = widths.widths if widths is not None else [{}] * len(blocks)
        scales = tuned.scales if tuned is not None else None
        self._scales = load_file(state_root() / scales.path) if scales is not None else {}
        self._load = functools.lru_cache(maxsize=1)(
            lambda index: load_block(state_root() / blocks[index].weights.path, config, own[index])
        )
        self._names = {
            f"{prefix}.{index}.{layer}": (index, layer)
            for index in range(len(blocks))
            for layer in self._load(index)[0]
        }
        # By full name, where they may differ.
        self.widths = {
            f"{prefix}.{index}.{layer}": width
            for index, block in enumerate(own)
            for layer, width in block.items()
        }
        self._prefix, self._num_blocks = prefix, len(blocks)

    def __getitem__(self, name: str) -> QuantizedWeight:
        index, layer = self._names[name]
        weight = self._load(index)[0][layer]
        return dataclasses.replace(weight, scales=self._scales.get(name, weight.scales))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def norms(self) -> dict[str, "Tensor"]:
        """Return the float32 masters of all tweaked norm parameters by full name."""
        return {
            f"{self._prefix}.{index}.{name}": master
            for index in range(self._num_blocks)
            for name, master in self._load(index)[1].items()
        }
