"""What a training minimizes: cross-entropy, divergence from the float model, or both."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normtweak_core.training.processes import Processes

EVALUATED_AT_ONCE = 4  # windows whose logits are in memory together


@dataclass(frozen=True)
class Objective:
    """``(1 - w) CE + w T**2 KL(float || trained)``, plus the distance of hidden states.

    Sources: distillation at a temperature, Hinton et al. 2015; on all logits of the float model,
    LLM-QAT (arXiv 2305.17888).
    """

    kind: Literal["ce", "kd", "mix"]
    kd_weight: float = 0.5  # w of ``mix``; it is 0 for ``ce`` and 1 for ``kd``
    temperature: float = 1.0
    hidden_weight: float = 0.0

    @property
    def needs_teacher(self) -> bool:
        """Whether the float model has to be run beside the trained one."""
        return self.kind != "ce"

    def loss(self, trained: Any, teacher: Any | None, ids: Int64[Tensor, "batch seq"]) -> Tensor:
        """Return the loss of one micro-batch, in nats per predicted token.

        Args:
            trained: Output of the trained model: ``logits``, and ``hidden_states`` where weighed.
            teacher: Output of the float model on the same ids; None without distillation.
            ids: What both have read.
        """
        share = {"ce": 0.0, "kd": 1.0, "mix": self.kd_weight}[self.kind]
        loss = torch.zeros((), device=ids.device)
        if share < 1:
            predicted = trained.logits[:, :-1].flatten(0, 1).float()
            loss = loss + (1 - share) * cross_entropy(predicted, ids[:, 1:].flatten())
        if share > 0:
            loss = loss + share * divergence(teacher.logits, trained.logits, self.temperature)
        if self.hidden_weight:
            loss = loss + self.hidden_weight * hidden_distance(
                teacher.hidden_states, trained.hidden_states
            )
        return loss


def divergence(
    float_logits: Float[Tensor, "batch seq vocab"],
    logits: Float[Tensor, "batch seq vocab"],
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Return ``T**2 KL(float || trained)`` at temperature T, averaged over tokens."""
    log_p = (float_logits.float() / temperature).log_softmax(dim=-1)
    log_q = (logits.float() / temperature).log_softmax(dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()


def hidden_distance(
    float_states: tuple[Float[Tensor, "batch seq hidden"], ...],
    states: tuple[Float[Tensor, "batch seq hidden"], ...],
) -> Float[Tensor, ""]:
    """Return the squared distance of the blocks' outputs, as a fraction of the float ones' power.

    The mean over blocks; the embedding, which comes first in both, is left out.
    """
    parts = [
        (f.float() - q.float()).square().mean() / f.float().square().mean()
        for f, q in zip(float_states[1:], states[1:], strict=True)
    ]
    return torch.stack(parts).mean()


@torch.no_grad()
def mean_loss(model: nn.Module, windows: Int64[Tensor, "samples seq"]) -> float:
    """Return the mean negative log-likelihood of windows, in nats per predicted token."""
    device, total = next(model.parameters()).device, 0.0
    for ids in windows.split(EVALUATED_AT_ONCE):
        logits = model(ids.to(device), use_cache=False).logits[:, :-1].float()
        total += cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].to(device).flatten(), reduction="sum"
        ).item()
    return total / (windows.shape[0] * (windows.shape[1] - 1))


class HeldOut(NamedTuple):
    """What windows that are not trained on say of a model, in nats per token."""

    objective: float  # what is minimized: of kd the divergence from the float model
    nll: float


@torch.no_grad()
def held_out_losses(
    model: nn.Module,
    teacher: nn.Module | None,
    windows: Int64[Tensor, "samples seq"],
    objective: Objective,
    processes: Processes | None = None,
) -> HeldOut:
    """Return what windows say of a model as it stands.

    Args:
        model: What is trained.
        teacher: The float model; None without distillation.
        windows: Not trained on.
        objective: What is minimized.
        processes: Those among which the windows are divided; None: those of this one's group.
    """
    processes = processes or Processes.here()
    parts, total, nll = windows.split(EVALUATED_AT_ONCE), 0.0, 0.0
    for first in range(0, len(parts), processes.count):
        # Passes of a model that is spread need all processes: who has no part left repeats one.
        own = min(first + processes.rank, len(parts) - 1)
        losses = _part_losses(model, teacher, parts[own], objective)
        told = processes.gathered(losses)
        for part, (of_objective, of_text) in zip(parts[first:], told, strict=False):
            total += of_objective * len(part)
            nll += of_text * len(part)
    return HeldOut(total / len(windows), nll / len(windows))


def _part_losses(
    model: nn.Module,
    teacher: nn.Module | None,
    part: Int64[Tensor, "part seq"],
    objective: Objective,
) -> list[float]:
    """Return objective and negative log-likelihood of windows, in nats per token."""
    ids, hidden = part.to(next(model.parameters()).device), objective.hidden_weight > 0
    taught = None
    if objective.needs_teacher:
        taught = teacher(ids, use_cache=False, output_hidden_states=hidden)
    trained = model(ids, use_cache=False, output_hidden_states=hidden)
    logits = trained.logits[:, :-1].float().flatten(0, 1)
    nll = cross_entropy(logits, ids[:, 1:].flatten())
    return [objective.loss(trained, taught, ids).item(), nll.item()]
