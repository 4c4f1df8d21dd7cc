"""Exports of other tools, saved by themselves, each in the environment of its tool.

``python -m tests.benchmarks.plugin.exports JOBS.json`` runs there, where nothing of ours is
installed; `make` starts it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

DIGESTS = "dequantized.json"  # beside the export: what the tool itself makes of it
REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Job:
    """What a tool does; paths are absolute."""

    tool: str  # gptqmodel, autoround or llm-compressor
    folder: str  # of the float model, with its tokenizer
    tokens: str  # safetensors: input_ids, windows x length
    out: str  # folder to be made
    settings: dict[str, Any] = field(default_factory=dict)  # of the tool
    form: str = ""  # of AutoRound
    read: bool = True  # whether the tool tells what it makes of its export

    def windows(self) -> "Tensor":
        """Return the calibration windows."""
        from safetensors.torch import load_file

        return load_file(self.tokens)["input_ids"]


def make(jobs: Sequence[Job]) -> None:
    """Let the tool of some jobs carry out those whose export is not there, in one process.

    Raises:
        RuntimeError: It has failed; the message is its last lines.
    """
    from tests.benchmarks.peers import environments as peers
    from tests.benchmarks.peers.job import ENVIRONMENT

    left = [job for job in jobs if not (Path(job.out) / DIGESTS).is_file()]
    if not left:
        return
    known = (peers.GPTQMODEL, peers.AUTOROUND, peers.LLM_COMPRESSOR)
    python = next(one for one in known if one.name == left[0].tool).python()
    with tempfile.TemporaryDirectory() as scratch:
        asked = Path(scratch) / "jobs.json"
        asked.write_text(json.dumps([asdict(job) for job in left]))
        environment = os.environ | ENVIRONMENT | {"TMPDIR": scratch, "OMP_NUM_THREADS": "1"}
        environment |= {"GPTQMODEL_CPU_WORKERS": "2", "PYTHONPATH": str(REPOSITORY)}
        ended = subprocess.run(
            [python, "-m", "tests.benchmarks.plugin.exports", asked],
            cwd=scratch,  # where some tools write logs
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    for job in left:
        if not (Path(job.out) / DIGESTS).is_file():
            shutil.rmtree(job.out, ignore_errors=True)
            raise RuntimeError(f"{job.tool} {job.settings}:\n{ended.stdout[-3000:]}")


def save_gptqmodel(job: Job) -> None:
    """Quantize with GPTQModel and save as it does."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    model = GPTQModel.load(
        job.folder, QuantizeConfig(**job.settings), device="cpu", dtype=torch.float32
    )
    ids = job.windows()
    windows = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in ids
    ]
    model.quantize(windows, batch_size=1)
    model.save(job.out)


def read_gptqmodel(job: Job) -> "dict[str, Tensor]":
    """Return the weights that GPTQModel computes with, in float32."""
    import torch
    from gptqmodel import BACKEND, GPTQModel

    from tests.benchmarks.peers.gptqmodel import dequantized

    packed = GPTQModel.load(job.out, backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
    return dequantized(packed.model)


def save_autoround(job: Job) -> None:
    """Quantize with AutoRound and save in one of its formats."""
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    ids = job.windows()
    tool = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job.folder),
        nsamples=len(ids),
        seqlen=ids.shape[1],
        dataset=list(ids.split(8)),
        device_map="cpu",
        **job.settings,
    )
    tool.quantize_and_save(job.out, format=job.form)
    found = Path(job.out)
    if not (found / "config.json").is_file():  # in a folder of its own below
        inner = next(found.rglob("config.json")).parent
        for file in inner.iterdir():
            shutil.move(file, found / file.name)
        inner.rmdir()


def read_autoround(job: Job) -> "dict[str, Tensor]":
    """Return the weights that AutoRound's own layers multiply with, in float16.

    Each is what a layer makes of unit vectors; which class reads which format says AutoRound's
    `dynamic_import_quant_linear_for_packing`.
    """
    import torch
    from auto_round.export.export_to_awq.utils import dequantize_gemm
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp
    from safetensors.torch import load_file

    held = load_file(Path(job.out) / "model.safetensors")
    bits, group = job.settings["bits"], job.settings["group_size"]
    less_one = job.form == "auto_gptq" or job.settings["sym"]
    kind = (qlinear_torch_zp if less_one else qlinear_torch).QuantLinear
    found = {}
    for name in [one.removesuffix(".qweight") for one in held if one.endswith(".qweight")]:
        words, zeros, scales = (held[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales"))
        if job.form == "auto_awq":
            found[f"{name}.weight"] = dequantize_gemm(words, zeros, scales, bits, group).T
            continue
        columns, rows = words.shape[0] * 32 // bits, words.shape[1]
        layer = kind(bits, group, columns, rows, False)
        layer.qweight, layer.qzeros, layer.scales = words, zeros, scales
        found[f"{name}.weight"] = layer(torch.eye(columns, dtype=torch.float16)).T
    return found


def save_llm_compressor(job: Job) -> None:
    """Quantize with llm-compressor and save as compressed-tensors."""
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    settings = dict(job.settings)
    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    ids = job.windows()
    data = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    ignored = [name for name, one in model.named_modules() if one is model.get_output_embeddings()]
    kind = settings.pop("modifier", "GPTQModifier")
    if kind == "AWQModifier":
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier

        recipe = [AWQModifier(duo_scaling=False), QuantizationModifier(ignore=ignored, **settings)]
    else:
        from llmcompressor.modifiers.gptq import GPTQModifier

        recipe = [GPTQModifier(ignore=ignored, **settings)]
    oneshot(
        model=model,
        dataset=Dataset.from_dict(data),
        recipe=recipe,
        shuffle_calibration_samples=False,
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
    )
    model.to(torch.float16).save_pretrained(job.out, save_compressed=True)


def read_llm_compressor(job: Job) -> "dict[str, Tensor]":
    """Return the weights that compressed-tensors dequantizes, in float16."""
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    opened = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        job.out, dtype=torch.float16, quantization_config=opened
    )
    return dict(model.state_dict())


SAVE = {
    "gptqmodel": (save_gptqmodel, read_gptqmodel),
    "autoround": (save_autoround, read_autoround),
    "llm-compressor": (save_llm_compressor, read_llm_compressor),
}


def main() -> None:
    """Do the jobs that the first argument names."""
    import torch

    torch.set_num_threads(1)
    for asked in json.loads(Path(sys.argv[1]).read_text()):
        job = Job(**asked)
        torch.manual_seed(0)
        save, read = SAVE[job.tool]
        save(job)
        digests = {name: digest(one) for name, one in sorted(read(job).items())} if job.read else {}
        (Path(job.out) / DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")
    sys.stdout.flush()
    os._exit(0)  # some tools leave threads that would wait


def digest(tensor: "Tensor") -> list[Any]:
    """Return float type, shape and SHA-256 of the bytes of a tensor."""
    held = tensor.detach().cpu().contiguous()
    raw = hashlib.sha256(held.numpy().tobytes()).hexdigest()
    return [str(held.dtype).removeprefix("torch."), list(held.shape), raw]


if __name__ == "__main__":
    main()
