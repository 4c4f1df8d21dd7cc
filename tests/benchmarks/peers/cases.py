"""What the tools are given: models, tokens to calibrate on and tokens to judge with."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from normtweak_core.calibration.documents import read_documents
from normtweak_core.calibration.generate import generate_windows
from normtweak_core.calibration.sets import set_of_texts
from normtweak_core.calibration.text import cut_windows
from normtweak_core.evaluate.divergence import perplexity
from normtweak_core.evaluate.text import HELD_OUT_TEXT
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.source import reference_folder
from normtweak_core.model.structure import find_blocks, find_linears
from normtweak_core.randomness import generator
from tests.benchmarks.peers.environments import PEERS
from tests.benchmarks.results import REPOSITORY

SHARED = REPOSITORY.parent / "shared"
SAMPLES, LENGTH = 64, 256  # as in the study of our own stages
JUDGED = 128  # windows
STORIES = 700  # that calibrate; the others judge
RANDOM = {  # a block of a small real model, and little around it
    "vocab_size": 4096,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}
RANDOM_WINDOWS = 32, 512


@dataclass(frozen=True)
class Case:
    """One model at one width."""

    model: str  # llama, neox, stories or random-BLOCKS
    bits: int
    group_size: int | None

    @property
    def name(self) -> str:
        """As files are called."""
        return f"{self.model}-w{self.bits}{f'g{self.group_size}' if self.group_size else 'channel'}"

    def folder(self) -> Path:
        """Return the float model, which is made where it is a random one."""
        if self.model == "stories":
            return SHARED / "models/stories260K"
        if self.model.startswith("random-"):
            return random_model(int(self.model.removeprefix("random-")))
        return reference_folder(self.model)

    def tokens(self) -> tuple[Path, Path | None]:
        """Return files of the windows to calibrate on and, of a trained model, to judge with."""
        calibration, judged = (PEERS / "tokens" / f"{self.model}-{what}" for what in ("c", "j"))
        if not calibration.is_file():
            calibration.parent.mkdir(parents=True, exist_ok=True)
            made = windows(self.model, self.folder())
            if made[1] is not None:
                save_file({"input_ids": made[1].contiguous()}, judged)
            save_file({"input_ids": made[0].contiguous()}, calibration)
        return calibration, judged if judged.is_file() else None

    def judged(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Return the perplexity of the float model and with other weights in it.

        Raises:
            RuntimeError: A weight is none of the model's, or of another shape.
        """
        model = load_causal_lm(self.folder(), torch.float32, "cpu")
        held_out = load_file(self.tokens()[1])["input_ids"]
        before = perplexity(model, held_out).perplexity.mean
        lost = model.load_state_dict(weights, strict=False)
        if lost.unexpected_keys:
            raise RuntimeError(f"weights that the model does not have: {lost.unexpected_keys}")
        linears = [
            one for block in find_blocks(model).modules for one in find_linears(block).values()
        ]
        return {
            "perplexity_float": before,
            "perplexity": perplexity(model, held_out).perplexity.mean,
            "quantized": quantized_share(
                [one.weight for one in linears], self.bits, self.group_size
            ),
        }


def quantized_share(weights: list[Tensor], bits: int, group_size: int | None) -> float:
    """Return the share of weights that lie on grids: a tool may leave a linear as it was.

    Args:
        weights: Of all linears in blocks, out x in.
        bits: A group has at most two to that power different values.
        group_size: Wider than that; None: the whole row.
    """
    on_grid = [
        one.numel()
        for one in weights
        if len(one.detach()[0, : group_size or one.shape[1]].unique()) <= 2**bits
    ]
    return sum(on_grid) / sum(one.numel() for one in weights)


QUALITY = [
    *(Case(model, bits, 64) for model in ("llama", "neox") for bits in (2, 3, 4)),
    *(Case("stories", bits, None) for bits in (2, 3, 4)),
]
COST = [Case(f"random-{blocks}", 4, 128) for blocks in (2, 6)]


def random_model(blocks: int) -> Path:
    """Return the folder of a Llama of random weights."""
    folder = PEERS / "models" / f"random-{blocks}"
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        config = LlamaConfig(num_hidden_layers=blocks, **RANDOM)
        tokenizer = AutoTokenizer.from_pretrained(reference_folder("llama"))
        tokenizer.save_pretrained(folder)  # some tools want one; nobody writes text with it
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def windows(model: str, folder: Path) -> tuple[Tensor, Tensor | None]:
    """Return the windows to calibrate on, and those to judge with."""
    if model.startswith("random-"):
        noise = generator(0, "peers")
        return torch.randint(RANDOM["vocab_size"], RANDOM_WINDOWS, generator=noise), None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if model == "stories":
        file = SHARED / "data/tinystories-1000/stories.clean.jsonl"
        stories = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        made = set_of_texts(stories[:STORIES], SAMPLES, tokenizer, LENGTH, seed=0)
        return made.input_ids, cut_windows(stories[STORIES:], tokenizer, LENGTH)[:JUDGED]
    written = generate_windows(
        load_causal_lm(folder, torch.float32, "cpu"), tokenizer, SAMPLES, LENGTH, seed=0
    )
    held_out = read_documents(folder / HELD_OUT_TEXT)
    return written.input_ids, cut_windows(held_out, tokenizer, LENGTH)[:JUDGED]
