"""Train a reference model: a small decoder on the text of the Python installation.

One epoch visits every window of the training tokens once, in an order that follows from the seed
and the epoch, so a run that is stopped and started again sees the same batches. The state on
disk is one safetensors file, replaced atomically.
"""

import hashlib
import json
import logging
import math
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from normtweak_core.errors import InputError
from normtweak_core.reference.architectures import CONTEXT, model_config, train_tokenizer
from normtweak_core.reference.corpus import Document, documents

log = logging.getLogger(__name__)

MEASURED_WINDOWS = 1000  # of the training text; with 200 the estimate was off by 0.08 nats
STATE_FILE = "training-state.safetensors"


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train. Defaults made the shipped models."""

    steps: int = 1300
    batch: int = 8  # windows of CONTEXT tokens per step
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.3
    seed: int = 0
    save_every: int = 50

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then cosine to a twentieth of the peak."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


class WindowOrder:
    """The batches of a run: window starts shuffled anew each epoch, none repeated inside one."""

    def __init__(self, num_tokens: int, batch: int, seed: int):
        """Cut ``num_tokens`` into windows of CONTEXT + 1 that overlap by their shared target."""
        self.num_windows = (num_tokens - 1) // CONTEXT
        self.batch, self.seed = batch, seed
        self.steps_per_epoch = self.num_windows // batch

    def starts(self, step: int) -> list[int]:
        """Return the first token of each window of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_windows, generator=generator)
        chosen = order[position * self.batch : (position + 1) * self.batch]
        return (chosen * CONTEXT).tolist()


def train_reference(name: str, out: Path, work: Path, plan: TrainingPlan) -> dict[str, float]:
    """Train (or go on training) a reference model and write it, bfloat16, into ``out``.

    Args:
        name: ``llama`` or ``neox``.
        out: Folder of the finished model: weights, tokenizer, held-out text and model card.
        work: Folder of the resumable state; deleted by the caller when no longer wanted.
        plan: Steps, batch, learning rate, seed.

    Returns:
        The measured losses, in nats per token, on the training and the held-out text.
    """
    work.mkdir(parents=True, exist_ok=True)
    corpus = documents()
    training = [document for document in corpus if not document.held_out]
    held_out = [document for document in corpus if document.held_out]
    tokenizer = train_tokenizer([document.text for document in training], name)
    tokens = encode_stream(training, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = AutoModelForCausalLM.from_config(model_config(name), dtype=torch.float32)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    seconds = run_training(model, tokens, plan, work / STATE_FILE)
    model.to(torch.bfloat16).to(torch.float32)  # measure what is shipped
    sample = evenly_spaced_windows(tokens, MEASURED_WINDOWS)
    losses = {
        "training_loss": mean_loss(model, sample),
        "held_out_loss": mean_loss(
            model, evenly_spaced_windows(encode_stream(held_out, tokenizer))
        ),
    }
    write_reference(out, name, model, tokenizer, corpus, losses | {"seconds": seconds}, plan)
    return losses


def encode_stream(texts: list[Document], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Return all documents as one 1-D token stream, each between two end-of-text tokens."""
    stream = [tokenizer.eos_token_id]
    # verbose=False: documents are longer than the context, as transformers would else remark.
    encoded = tokenizer([d.text for d in texts], add_special_tokens=False, verbose=False)
    for ids in encoded["input_ids"]:
        stream += [*ids, tokenizer.eos_token_id]
    return torch.tensor(stream, dtype=torch.int64)


def evenly_spaced_windows(tokens: torch.Tensor, count: int | None = None) -> torch.Tensor:
    """Return ``(count, CONTEXT + 1)`` windows spread over the stream; default: all of them."""
    available = (len(tokens) - 1) // CONTEXT
    chosen = torch.linspace(0, available - 1, min(count or available, available)).long()
    return torch.stack([tokens[i * CONTEXT : (i + 1) * CONTEXT + 1] for i in chosen.tolist()])


def next_token_loss(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood per predicted token, in nats."""
    windows = windows.to(model.device)
    logits = model(windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def mean_loss(model: PreTrainedModel, windows: torch.Tensor) -> float:
    """Return the mean loss over the windows, in nats per token."""
    losses = [next_token_loss(model, chunk).item() * len(chunk) for chunk in windows.split(16)]
    return sum(losses) / len(windows)


def run_training(
    model: PreTrainedModel, tokens: torch.Tensor, plan: TrainingPlan, state_file: Path
) -> float:
    """Train in place from the last saved state; return the seconds spent, all runs together."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": plan.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=plan.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    origin = training_origin(tokens, plan)
    first, spent = 0, 0.0
    if state_file.exists():
        first, spent = load_state(model, optimizer, state_file, origin)
    order = WindowOrder(len(tokens), plan.batch, plan.seed)
    began, running = time.monotonic(), None
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step)
        batch = torch.stack([tokens[start : start + CONTEXT + 1] for start in order.starts(step)])
        loss = next_token_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            elapsed = spent + time.monotonic() - began
            save_state(model, optimizer, state_file, step + 1, elapsed, origin)
            per_step = (time.monotonic() - began) / (step + 1 - first)
            log.info(
                "step %d/%d  loss %.3f  %.0f tokens/s  %.0f min left",
                step + 1,
                plan.steps,
                running,
                plan.batch * CONTEXT / per_step,
                (plan.steps - step - 1) * per_step / 60,
            )
    return spent + time.monotonic() - began


def training_origin(tokens: torch.Tensor, plan: TrainingPlan) -> str:
    """Return a hash of what a training starts from: going on from another's state is no resume."""
    digest = hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode())
    digest.update(tokens.numpy().tobytes())
    return digest.hexdigest()


def save_state(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    path: Path,
    step: int,
    seconds: float,
    origin: str,
) -> None:
    """Write weights and both Adam moments; the old state stays until the new one is complete."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach().contiguous()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].contiguous()
    temporary = path.with_suffix(".tmp")
    metadata = {"step": str(step), "seconds": str(seconds), "origin": origin}
    save_file(tensors, temporary, metadata=metadata)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)


def load_state(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, path: Path, origin: str
) -> tuple[int, float]:
    """Restore what `save_state` wrote; return the next step and the seconds already spent.

    Raises:
        InputError: The state is of another plan or of another text.
    """
    with safe_open(path, "pt", device=str(model.device)) as state:
        if state.metadata().get("origin") != origin:
            raise InputError(
                "a training goes on only with the plan and the text it began with; the state in "
                f"{path.parent} has others: remove it, or give another --work"
            )
        step, seconds = int(state.metadata()["step"]), float(state.metadata()["seconds"])
        for name, parameter in model.named_parameters():
            parameter.data.copy_(state.get_tensor(f"weight.{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": state.get_tensor(f"exp_avg.{name}"),
                "exp_avg_sq": state.get_tensor(f"exp_avg_sq.{name}"),
            }
    log.info("going on from step %d", step)
    return step, seconds


def write_reference(
    out: Path,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    corpus: list[Document],
    measured: dict[str, float],
    plan: TrainingPlan,
) -> None:
    """Write weights (bfloat16), tokenizer, held-out text, corpus list and model card."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    held_out = [document for document in corpus if document.held_out]
    with (out / "held-out.jsonl").open("w", encoding="utf-8") as stream:
        for document in held_out:
            stream.write(json.dumps({"source": document.source, "text": document.text}) + "\n")
    with (out / "corpus.tsv").open("w", encoding="utf-8") as stream:
        stream.write("split\tkind\tsource\tcharacters\tsha256\n")
        for document in corpus:
            split = "held-out" if document.held_out else "training"
            stream.write(
                f"{split}\t{document.kind}\t{document.source}\t"
                f"{len(document.text)}\t{document.sha256}\n"
            )
    (out / "README.md").write_text(model_card(name, model, corpus, measured, plan))


def model_card(
    name: str,
    model: PreTrainedModel,
    corpus: list[Document],
    measured: dict[str, float],
    plan: TrainingPlan,
) -> str:
    """Return the model card: what it is, what it was trained on, what was measured."""
    characters = {
        split: sum(len(d.text) for d in corpus if d.held_out == (split == "held-out"))
        for split in ("training", "held-out")
    }
    command = f"normtweak reference train {name} --steps {plan.steps}"
    return f"""# Reference model `{name}`

A {sum(p.numel() for p in model.parameters()):,}-parameter {type(model).__name__} trained by this
project on text that every Python installation carries. It exists so that the pipeline has a real
trained model to work on without a download; it is not useful for anything else.

| measured (bfloat16 weights, float32 arithmetic, windows of {CONTEXT}) | |
|---|---|
| held-out perplexity | {math.exp(measured["held_out_loss"]):.3f} |
| held-out loss | {measured["held_out_loss"]:.4f} nats per token |
| training loss | {measured["training_loss"]:.4f} nats per token |
| training steps | {plan.steps} of {plan.batch} x {CONTEXT} tokens |
| training time | {measured["seconds"] / 60:.0f} min |

* Corpus: {characters["training"]:,} characters for training, {characters["held-out"]:,} held out,
  split by file. `corpus.tsv` lists every document with its SHA-256; `held-out.jsonl` is the
  held-out text.
* Python {platform.python_version()} ({sys.platform}), torch {torch.__version__}.
* Command: `{command}`
* Plan: `{json.dumps(asdict(plan))}`
* The corpus is the Python standard library and its documentation, under the PSF licence.
"""
