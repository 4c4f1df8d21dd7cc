"""What decides how one block is quantized."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from normtweak_core.finetune.config import BlockTrainingConfig
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.tweak.config import NormTweakConfig


@dataclass(frozen=True)
class BlockPlan:
    """Everything a block's result depends on besides its weights and its input streams."""

    index: int
    num_blocks: int
    quantization: QuantizationConfig
    norm_tweak: NormTweakConfig
    export_dtype: torch.dtype
    training: BlockTrainingConfig = field(default_factory=BlockTrainingConfig)
    seed: int = 0  # of the order in which a training reads its windows
    # Of its linears by name, where the settings leave them open.
    widths: Mapping[str, int] = field(default_factory=dict)

    def settings_of(self, linear: str) -> QuantizationConfig:
        """Return the settings of one linear."""
        return self.quantization.at(self.widths[linear]) if self.widths else self.quantization
