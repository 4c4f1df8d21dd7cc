"""llm-compressor: GPTQ, with its usual observer and with the better one."""

from collections.abc import Callable
from typing import Any

from tests.benchmarks.peers.environments import LLM_COMPRESSOR
from tests.benchmarks.peers.job import Job, Weights, run

ENVIRONMENT = LLM_COMPRESSOR
SETTINGS: dict[str, dict[str, Any]] = {
    "GPTQ": {},
    "GPTQ, mse observer": {"observer": "mse"},
}
COST = ("GPTQ", "GPTQ, mse observer")


def prepare(job: Job) -> Callable[[], Weights]:
    """Return the work: oneshot, which leaves dequantized weights in the model."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    names = set(model.state_dict())
    ids = job.input_ids
    data = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    grouped = {"strategy": "group", "group_size": job.group_size}
    grid = grouped if job.group_size else {"strategy": "channel"}
    weights = {"num_bits": job.bits, "type": "int", "symmetric": False}
    weights |= grid | SETTINGS[job.setting]
    scheme = {"targets": ["Linear"], "weights": weights}
    # The head of a model is called lm_head or embed_out.
    ignored = [name for name, one in model.named_modules() if one is model.get_output_embeddings()]
    recipe = GPTQModifier(config_groups={"group_0": scheme}, ignore=ignored)
    dataset = Dataset.from_dict(data)

    def work() -> Weights:
        oneshot(
            model=model,
            dataset=dataset,
            recipe=[recipe],
            shuffle_calibration_samples=False,
            max_seq_length=ids.shape[1],
            num_calibration_samples=len(ids),
        )
        return lambda: {n: one for n, one in model.state_dict().items() if n in names}

    return work


if __name__ == "__main__":
    run("llmcompressor", prepare)
