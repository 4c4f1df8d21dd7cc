"""A block that others have quantized: their codes stay, and what is trained starts from it."""

from dataclasses import dataclass

import torch
from torch import nn

from normtweak_core.distributed.ranks import ALONE, Ranks
from normtweak_core.model.structure import find_linears, linear_weight, set_linear_weight
from normtweak_core.quantization.linears.inputs import RunBlock
from normtweak_core.quantization.linears.solve import SolvedLinears
from normtweak_core.quantization.report import LayerReport
from normtweak_core.quantization.streams import Streams, run_stream
from normtweak_core.quantization.weight import QuantizedWeight


@dataclass(frozen=True)
class GivenBlock:
    """A block as a checkpoint has it; names are relative to it."""

    block: nn.Module  # with its norms, biases and dequantized weights; the caller's to change
    layers: dict[str, QuantizedWeight]


@torch.no_grad()
def take_linears(
    block: nn.Module,
    given: GivenBlock,
    streams: Streams,
    run: RunBlock,
    ranks: Ranks = ALONE,
) -> SolvedLinears:
    """Return the given linears as if they had been solved, and take the streams behind the block.

    Args:
        block: Float block. Not modified.
        given: What others have made of it.
        streams: In front of the block, two tensors; overwritten.
        run: Runs a block on a micro-batch of windows.
        ranks: Who does it.
    """
    done, originals, targets = SolvedLinears(), find_linears(block), find_linears(given.block)
    for name, weight in given.layers.items():
        original, rounded = linear_weight(originals[name]).float(), weight.dequantize()
        rounded = rounded.to(original.device)
        set_linear_weight(targets[name], rounded)
        done.layers[name] = weight
        done.reports.append(
            LayerReport(
                layer=name,
                bits=weight.bits,
                percdamp=0.0,
                damping_raised=False,
                ridge=0.0,
                ridge_raised=False,
                dead_columns=0,
                weight_error=(
                    (rounded - original).norm() / original.norm().clamp(min=1e-30)
                ).item(),
                output_error=None,
            )
        )
    run_stream(block, streams.x_f, run, streams.x_f, ranks)
    run_stream(given.block, streams.x_q, run, streams.x_q, ranks)
    return done
