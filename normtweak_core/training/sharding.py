"""A model whose parameters are spread over the processes of a training (FSDP2).

The parameters of a block are whole, on every process, while it computes, and a share of their rows
otherwise; so are their gradients and moments. Modules see whole tensors.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from normtweak_core.training.processes import Processes


def shard(model: nn.Module, processes: Processes, device: torch.device) -> None:
    """Spread a model, in place, over processes, where there are several; put it on the device.

    Args:
        model: A decoder whose trained parameters are float32. One that is still on the CPU goes
            to the device block by block, so that it need not fit there whole.
        processes: All of them call this with equal models.
        device: Where this one computes.
    """
    if processes.count == 1:
        model.to(device)
        return
    # By its type alone: with a number, it would be the same device for all.
    mesh = init_device_mesh(device.type, (processes.count,))
    for block in _blocks(model):
        fully_shard(block.to(device), mesh=mesh, reshard_after_forward=True)
    # By default what is outside the blocks would stay whole after a pass without a backward one,
    # as parameters that the optimizer does not know.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the entries of the module list that holds most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda one: sum(p.numel() for p in one.parameters())))
