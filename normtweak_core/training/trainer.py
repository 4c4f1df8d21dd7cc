"""The training loop: one model, windows of token ids, an objective, and a folder of checkpoints.

It runs on one CPU or GPU, or in the processes of torch's process group, where there is one: they
divide each batch, and the model is spread over them. Stopped at any step and started again it ends
in the same bytes, on the same machine with the same number of threads and of processes.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from normtweak_core.errors import NonFiniteError
from normtweak_core.training.arithmetic import TrainingDtype, arithmetic
from normtweak_core.training.checkpoint import Best, TrainingState, newest_state
from normtweak_core.training.interrupt import deferred_interrupts
from normtweak_core.training.objective import HeldOut, Objective
from normtweak_core.training.order import window_order
from normtweak_core.training.processes import Processes, whole
from normtweak_core.training.rates import BETAS, Rates
from normtweak_core.training.sharding import shard
from normtweak_core.training.shared_checkpoint import newest_shared, save_shared

log = logging.getLogger(__name__)

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter

Progress = Callable[[int, int, float, float], None]  # step, steps, loss, tokens per second


@dataclass(frozen=True)
class TrainingSetup:
    """How a training runs, apart from what is trained."""

    steps: int
    batch: int  # windows per optimizer step, all processes together
    rates: Rates
    objective: Objective
    clip: float = 1.0  # largest norm of the gradient
    accumulate: int = 1  # parts that a process computes its share of the batch in
    save_every: int = 50
    seed: int = 0
    ratios: Mapping[str, float] = field(default_factory=dict)  # of a parameter's rate to the rates'
    dtype: TrainingDtype = "float32"  # of the products of the trained model
    measured: Collection[int] = ()  # after so many steps held-out windows are measured on


class Trainer:
    """Trains a model in place, from its newest checkpoint on."""

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        windows: Int64[Tensor, "windows seq"],
        setup: TrainingSetup,
        folder: Path,
        origin: str,
        before_step: Callable[[nn.Module, int], None] = lambda model, step: None,
        measure: Callable[[], HeldOut] | None = None,
        device: torch.device | None = None,
    ):
        """Prepare model and optimizer, and take up the newest state of the folder.

        Args:
            model: Causal LM whose trainable parameters are float32; stays in eval mode.
            teacher: The float model; needed where the objective distils.
            windows: Token ids to train on.
            setup: Steps, rates, objective.
            folder: Of the checkpoints.
            origin: Hash of everything the training starts from.
            before_step: Called with the model and the steps done, to set what follows a schedule.
            measure: Returns what held-out windows say of the model as it stands; the weights with
                the lowest objective are kept, those of the start included. None: none are.
            device: Where this process computes; None: where the model is.

        Raises:
            ValueError: The objective needs a teacher and there is none, or the batch does not
                divide among processes and parts.
        """
        if setup.objective.needs_teacher and teacher is None:
            raise ValueError(f"objective {setup.objective.kind} needs the float model; got none")
        self.processes = Processes.here()
        parts = self.processes.count * setup.accumulate
        if setup.batch % parts:
            raise ValueError(
                f"a batch must divide into equal parts; found {setup.batch} windows for "
                f"{self.processes.count} processes of {setup.accumulate} parts"
            )
        self.setup, self.folder, self.origin = setup, folder, origin
        self.windows, self.before_step, self.measure = windows, before_step, measure
        self.model, self.teacher = model.eval(), teacher
        self.device = device or next(model.parameters()).device
        for one in (model, teacher):
            if one is not None:
                shard(one, self.processes, self.device)
        self.optimizer = _optimizer(model, setup)
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.held_out: dict[int, HeldOut] = {}
        self.best: Best | None = None

    def run(self, until: int, progress: Progress = lambda *_: None) -> TrainingState:
        """Train until that many steps are done, and return where it stands.

        A Ctrl-C ends the loop after the running step; that step is saved first. In the processes
        beside the one that was told to end, the loop ends too: they return before ``until``.

        Args:
            until: Optimizer steps, at most those of the setup.
            progress: Called after each step.

        Raises:
            NonFiniteError: Loss or gradient became NaN or infinite; the last checkpoint stays.
        """
        if self.step == 0 or self.step > until:
            self._take_up(until)
        if self.step == 0:
            self._measure()
        began, first = time.monotonic(), self.step
        spent = self.seconds
        with deferred_interrupts() as asked:
            stopping = False
            while self.step < until and not stopping:
                loss = self._one_step()
                self.losses.append(loss)
                self.step += 1
                elapsed = time.monotonic() - began
                self.seconds = spent + elapsed
                tokens = (self.step - first) * self.setup.batch * self.windows.shape[1]
                if self.step in self.setup.measured:
                    self._measure()
                progress(self.step, self.setup.steps, loss, tokens / elapsed)
                stopping = self.processes.any(bool(asked))
                if self.step % self.setup.save_every == 0 or self.step == until or stopping:
                    self.save()
        return self.state()

    def state(self) -> TrainingState:
        """Return the state after the last step; its tensors are those of the model."""
        moments: dict[str, dict[str, Tensor]] = {}
        kept = self.optimizer.state
        for name, parameter in _trainable(self.model):
            for moment in MOMENTS:
                if parameter in kept:
                    moments.setdefault(moment, {})[name] = kept[parameter][moment]
        weights = {name: parameter.detach() for name, parameter in _trainable(self.model)}
        return TrainingState(
            self.step,
            weights,
            moments,
            list(self.losses),
            self.seconds,
            dict(self.held_out),
            self.best,
        )

    def save(self) -> None:
        """Write a checkpoint."""
        if self.processes.count == 1:
            self.state().save(self.folder, self.origin)
        else:
            save_shared(self.state(), self.folder, self.origin, self.processes)

    def _measure(self) -> None:
        """Measure on held-out windows, and keep the weights if none before were as good."""
        if self.measure is None or self.step in self.held_out:
            return
        value = self.measure()
        if not all(map(math.isfinite, value)):
            raise NonFiniteError(
                f"the loss of held-out windows must be finite; found {value.nll:g} after step "
                f"{self.step}: lower the learning rate (now {self.setup.rates.lr:g})"
            )
        self.held_out[self.step] = value
        if self.best is None or value.objective < self.best.held_out:
            weights = {n: p.detach().cpu().clone() for n, p in _trainable(self.model)}
            self.best = Best(self.step, value.objective, weights)

    def _take_up(self, at_most: int) -> None:
        state = self._newest(at_most)
        if state is None:
            return
        with torch.no_grad():
            for name, parameter in _trainable(self.model):
                parameter.copy_(state.weights[name])
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.step), device=parameter.device),
                    **{
                        moment: state.moments[moment][name].to(parameter.device)
                        for moment in state.moments
                    },
                }
        self.step, self.losses, self.seconds = state.step, state.losses, state.seconds
        self.held_out, self.best = state.held_out, state.best
        log.info("training goes on from step %d", state.step)

    def _newest(self, at_most: int) -> TrainingState | None:
        if self.processes.count == 1:
            return newest_state(self.folder, self.origin, at_most)
        trained = dict(_trainable(self.model))
        return newest_shared(self.folder, self.origin, at_most, trained, MOMENTS, self.processes)

    def _one_step(self) -> float:
        """Return the mean loss of a batch after stepping down its gradient."""
        setup = self.setup
        self.before_step(self.model, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = setup.rates.lr_at(self.step) * group["ratio"]
            if group["decays"]:
                group["weight_decay"] = setup.rates.weight_decay_at(self.step)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        parts = list(self._micro_batches())
        for ids in parts:
            loss = self._loss(ids) / len(parts)
            loss.backward()  # each process keeps the mean gradient of its share of the parameters
            total += loss.detach()
        norm = self._clip()
        told = self.processes.gathered([total.item()])
        value = sum(loss for [loss] in told) / len(told)
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise NonFiniteError(
                f"the loss and its gradient must be finite; found {value:g} and {float(norm):g} at "
                f"step {self.step}: lower the learning rate (now {setup.rates.lr:g}). The last "
                "checkpoint is kept"
            )
        self.optimizer.step()
        return value

    def _clip(self) -> Tensor:
        """Return the norm of the whole gradient, after shortening it to the longest allowed."""
        trained = [parameter for _, parameter in _trainable(self.model)]
        norm = whole(get_total_norm([p.grad for p in trained if p.grad is not None]))
        clip_grads_with_norm_(trained, self.setup.clip, norm)
        return norm

    def _micro_batches(self) -> Iterator[Int64[Tensor, "part seq"]]:
        chosen = window_order(len(self.windows), self.setup.batch, self.setup.seed, self.step)
        own = chosen[self.processes.rank :: self.processes.count]
        size = len(own) // self.setup.accumulate
        for start in range(0, len(own), size):
            yield self.windows[own[start : start + size]].to(self.device)

    def _loss(self, ids: Int64[Tensor, "part seq"]) -> Tensor:
        setup, objective = self.setup, self.setup.objective
        hidden = objective.hidden_weight > 0
        taught: Any = None
        if objective.needs_teacher:
            with torch.no_grad():
                taught = self.teacher(ids, use_cache=False, output_hidden_states=hidden)
        with arithmetic(setup.dtype, ids.device):
            trained = self.model(ids, use_cache=False, output_hidden_states=hidden)
        return objective.loss(trained, taught, ids)


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _optimizer(model: nn.Module, setup: TrainingSetup) -> torch.optim.Optimizer:
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in _trainable(model):
        kind = (parameter.ndim > 1, setup.ratios.get(name, 1.0))
        groups.setdefault(kind, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "decays": decays, "ratio": ratio}
            for (decays, ratio), parameters in groups.items()
        ],
        lr=setup.rates.lr,
        betas=BETAS,
        weight_decay=0.0,
        fused=True,
    )
