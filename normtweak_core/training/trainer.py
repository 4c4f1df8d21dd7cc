"""The training loop: one model, windows of token ids, an objective, and a folder of checkpoints.

It runs on whatever `accelerate` finds or its launcher was told: one CPU, one GPU, or several
processes that share each batch. Stopped at any step and started again it ends in the same bytes,
on the same machine with the same number of threads.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from torch import Tensor, nn

from normtweak_core.errors import NonFiniteError
from normtweak_core.training.arithmetic import TrainingDtype, arithmetic
from normtweak_core.training.checkpoint import Best, TrainingState, newest_state
from normtweak_core.training.interrupt import deferred_interrupts
from normtweak_core.training.objective import HeldOut, Objective
from normtweak_core.training.order import window_order
from normtweak_core.training.rates import BETAS, Rates

log = logging.getLogger(__name__)

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

        Raises:
            ValueError: The objective needs a teacher and there is none, or the batch does not
                divide among processes and parts.
        """
        if setup.objective.needs_teacher and teacher is None:
            raise ValueError(f"objective {setup.objective.kind} needs the float model; got none")
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
        parts = self.accelerator.num_processes * setup.accumulate
        if setup.batch % parts:
            raise ValueError(
                f"a batch must divide into equal parts; found {setup.batch} windows for "
                f"{self.accelerator.num_processes} processes of {setup.accumulate} parts"
            )
        self.setup, self.folder, self.origin = setup, folder, origin
        self.windows, self.before_step, self.measure = windows, before_step, measure
        self.model = model.eval()
        self.teacher = teacher
        self.optimizer = _optimizer(model, setup)
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.held_out: dict[int, HeldOut] = {}
        self.best: Best | None = None
        self._wrapped, self.optimizer = self.accelerator.prepare(model, self.optimizer)
        if teacher is not None:
            teacher.to(self.accelerator.device)

    def run(self, until: int, progress: Progress = lambda *_: None) -> TrainingState:
        """Train until that many steps are done, and return where it stands.

        A Ctrl-C ends the loop after the running step; that step is saved first.

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
            while self.step < until and not asked:
                loss = self._one_step()
                self.losses.append(loss)
                self.step += 1
                elapsed = time.monotonic() - began
                self.seconds = spent + elapsed
                tokens = (self.step - first) * self.setup.batch * self.windows.shape[1]
                if self.step in self.setup.measured:
                    self._measure()
                progress(self.step, self.setup.steps, loss, tokens / elapsed)
                if self.step % self.setup.save_every == 0 or self.step == until or asked:
                    self.save()
        return self.state()

    def state(self) -> TrainingState:
        """Return the state after the last step; its tensors are those of the model."""
        moments: dict[str, dict[str, Tensor]] = {}
        inner = self.optimizer.optimizer
        for name, parameter in _trainable(self.model):
            for moment in ("exp_avg", "exp_avg_sq"):
                if parameter in inner.state:
                    moments.setdefault(moment, {})[name] = inner.state[parameter][moment]
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
        """Write a checkpoint; only the first process does."""
        if self.accelerator.is_main_process:
            self.state().save(self.folder, self.origin)
        self.accelerator.wait_for_everyone()

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
        state = newest_state(self.folder, self.origin, at_most)
        if state is None:
            return
        inner = self.optimizer.optimizer
        with torch.no_grad():
            for name, parameter in _trainable(self.model):
                parameter.copy_(state.weights[name])
                inner.state[parameter] = {
                    "step": torch.tensor(float(state.step), device=parameter.device),
                    **{
                        moment: state.moments[moment][name].to(parameter.device)
                        for moment in state.moments
                    },
                }
        self.step, self.losses, self.seconds = state.step, state.losses, state.seconds
        self.held_out, self.best = state.held_out, state.best
        log.info("training goes on from step %d", state.step)

    def _one_step(self) -> float:
        """Return the mean loss of a batch after stepping down its gradient."""
        setup = self.setup
        self.before_step(self.model, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = setup.rates.lr_at(self.step) * group["ratio"]
            if group["decays"]:
                group["weight_decay"] = setup.rates.weight_decay_at(self.step)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.accelerator.device)
        parts = list(self._micro_batches())
        for number, ids in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self._wrapped):
                loss = self._loss(ids) / len(parts)
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), setup.clip)
        value = self.accelerator.reduce(total, "mean").item()
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise NonFiniteError(
                f"the loss and its gradient must be finite; found {value:g} and {float(norm):g} at "
                f"step {self.step}: lower the learning rate (now {setup.rates.lr:g}). The last "
                "checkpoint is kept"
            )
        self.optimizer.step()
        return value

    def _micro_batches(self) -> Iterator[Int64[Tensor, "part seq"]]:
        chosen = window_order(len(self.windows), self.setup.batch, self.setup.seed, self.step)
        own = chosen[self.accelerator.process_index :: self.accelerator.num_processes]
        size = len(own) // self.setup.accumulate
        for start in range(0, len(own), size):
            yield self.windows[own[start : start + size]].to(self.accelerator.device)

    def _loss(self, ids: Int64[Tensor, "part seq"]) -> Tensor:
        setup, objective = self.setup, self.setup.objective
        hidden = objective.hidden_weight > 0
        taught: Any = None
        if objective.needs_teacher:
            with torch.no_grad():
                taught = self.teacher(ids, use_cache=False, output_hidden_states=hidden)
        with arithmetic(setup.dtype, ids.device):
            trained = self._wrapped(ids, use_cache=False, output_hidden_states=hidden)
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
