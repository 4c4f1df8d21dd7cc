"""AutoRound: its defaults, and each of what makes it better."""

from collections.abc import Callable
from typing import Any

from tests.benchmarks.peers.environments import AUTOROUND
from tests.benchmarks.peers.job import Job, Weights, run

ENVIRONMENT = AUTOROUND
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},  # 200 iterations, autocast to bfloat16
    "float32": {"amp": False},
    "algorithm extension, symmetric": {"sym": True, "enable_alg_ext": True},
    "NeUQI": {"enable_neuqi": True},
    "best": {"iters": 1000},
}
COST = ("default",)


def prepare(job: Job) -> Callable[[], Weights]:
    """Return the work: quantize, which leaves dequantized weights in the model."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    names = set(model.state_dict())
    ids = job.input_ids
    settings = {"sym": False} | SETTINGS[job.setting]
    tool = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job.folder),
        bits=job.bits,
        group_size=job.group_size or -1,
        nsamples=len(ids),
        seqlen=ids.shape[1],
        dataset=list(ids.split(8)),
        device_map="cpu",
        **settings,
    )

    def work() -> Weights:
        quantized, _ = tool.quantize()
        return lambda: {n: one for n, one in quantized.state_dict().items() if n in names}

    return work


if __name__ == "__main__":
    run("auto-round", prepare)
