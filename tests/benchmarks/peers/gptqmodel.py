"""GPTQModel: GPTQ, and its norms tuned after it."""

from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.peers.environments import GPTQMODEL
from tests.benchmarks.peers.job import Job, Weights, run

ENVIRONMENT = GPTQMODEL
SETTINGS = {"GPTQ": False, "GPTQ + norms": True}  # whether norms are tuned
COST = ("GPTQ",)


def prepare(job: Job) -> Callable[[], Weights]:
    """Return the work: quantize, pack and save; then, where asked for, tune the norms."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import NormConfig, NormType
    from gptqmodel.utils.cpp import load_pack_block_extension

    load_pack_block_extension()  # compiled by the first run on a machine
    # Groups that activations order need groups.
    config = QuantizeConfig(
        bits=job.bits,
        group_size=job.group_size or -1,
        sym=False,
        act_group_aware=job.group_size is not None,
        desc_act=False,
    )
    model = GPTQModel.load(job.folder, config, device="cpu", dtype=torch.float32)
    ids = job.input_ids
    windows = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in ids
    ]
    saved = str(Path(job.scratch) / "quantized")

    def load() -> GPTQModel:
        return GPTQModel.load(saved, backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)

    def work() -> Weights:
        model.quantize(windows, batch_size=1)
        model.save(saved)
        if not SETTINGS[job.setting]:
            return lambda: dequantized(load().model)
        packed = load()
        norm = NormConfig(teacher=job.folder, types=tuple(NormType), steps=400, lr=1e-3)
        packed.requantize(windows, norm=norm)
        return lambda: dequantized(packed.model)

    return work


def dequantized(model: "torch.nn.Module") -> "dict[str, torch.Tensor]":  # noqa: F821
    """Return all weights of a packed model, those of its linears from codes and float32 scales."""
    packed = {name: one for name, one in model.named_modules() if hasattr(one, "qweight")}
    weights = {}
    for name, module in packed.items():
        module.scales = module.scales.float()
        weights[f"{name}.weight"] = super(type(module), module).dequantize_weight().T
        if module.bias is not None:
            weights[f"{name}.bias"] = module.bias
    rest = {
        name: one
        for name, one in model.state_dict().items()
        if name.rpartition(".")[0] not in packed
    }
    return rest | weights


if __name__ == "__main__":
    run("gptqmodel", prepare)
