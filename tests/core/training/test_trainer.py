"""The training loop: it learns, resumes to the same bytes, and stops as it should."""

import itertools
import signal
import threading
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM

from normtweak_core.errors import NonFiniteError
from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.schedule import lambdas
from normtweak_core.ternary.surgery import (
    apply_surgery,
    forget_inputs,
    plan_surgery,
    set_lambdas,
    trained_blocks,
    trained_linears,
)
from normtweak_core.training.arithmetic import arithmetic
from normtweak_core.training.checkpoint import checkpoints
from normtweak_core.training.objective import HeldOut, Objective, held_out_losses
from normtweak_core.training.order import window_order
from normtweak_core.training.rates import Rates
from normtweak_core.training.recompute import recompute_blocks
from normtweak_core.training.trainer import Trainer, TrainingSetup

STEPS = 12
CONFIG = TernaryConfig(steps=STEPS, batch=4, start="absmean")


def a_trainer(
    tiny_folders,
    folder,
    *,
    kind="kd",
    changes=None,
    origin="same",
    seed=0,
    recompute=False,
    length=16,
):
    windows = torch.randint(96, (24, length), generator=torch.Generator().manual_seed(1))
    model, teacher = (
        AutoModelForCausalLM.from_pretrained(tiny_folders["llama"]).eval() for _ in range(2)
    )
    teacher.requires_grad_(False)
    plan = plan_surgery(model, windows[:4])
    apply_surgery(model, plan, CONFIG)
    if recompute:
        recompute_blocks(trained_blocks(model), forget_inputs)
    objective = Objective(kind)
    setup = {
        "steps": STEPS,
        "batch": 4,
        "rates": Rates(STEPS, 3e-3, weight_decay=0.1),
        "objective": objective,
        "measured": (4, 8, STEPS),
        "save_every": 5,
        "seed": seed,
    }

    def measure():
        set_lambdas(model, [1.0] * len(plan.blocks), ramp_norm=True)
        return held_out_losses(model, teacher, windows[20:], objective)

    return Trainer(
        model,
        teacher if kind != "ce" else None,
        windows,
        TrainingSetup(**setup | (changes or {})),
        folder,
        origin,
        lambda m, step: set_lambdas(m, lambdas(CONFIG, step, len(plan.blocks)), ramp_norm=True),
        measure,
    )


def test_training_lowers_the_loss_of_a_ternary_model(tiny_folders, tmp_path):
    changes = {"steps": 40, "rates": Rates(40, 5e-3)}
    trainer = a_trainer(tiny_folders, tmp_path, changes=changes)
    losses = trainer.run(40).losses
    assert sum(losses[-5:]) < 0.6 * sum(losses[STEPS : STEPS + 5])  # lambda is 1 from there on


@pytest.mark.parametrize("kind", ["ce", "kd", "mix"])
def test_stopped_anywhere_it_ends_in_the_same_bytes(tiny_folders, tmp_path, kind):
    whole = a_trainer(tiny_folders, tmp_path / "whole", kind=kind).run(STEPS)
    for stop in (1, 5, 7):
        folder = tmp_path / str(stop)
        a_trainer(tiny_folders, folder, kind=kind).run(stop)
        again = a_trainer(tiny_folders, folder, kind=kind)
        assert again.run(STEPS).sha256() == whole.sha256()
        assert len(again.losses) == STEPS


def test_a_kill_between_checkpoints_costs_the_steps_since_the_last_one(tiny_folders, tmp_path):
    whole = a_trainer(tiny_folders, tmp_path / "whole").run(STEPS).sha256()
    trainer = a_trainer(tiny_folders, tmp_path / "killed")

    def killed(step, *_):
        if step == 8:
            raise SystemExit  # nothing is saved on the way out

    with pytest.raises(SystemExit):
        trainer.run(STEPS, killed)
    again, steps = a_trainer(tiny_folders, tmp_path / "killed"), []
    assert again.run(STEPS, lambda step, *_: steps.append(step)).sha256() == whole
    assert steps[0] == 6


def test_ctrl_c_saves_the_running_step_first(tiny_folders, tmp_path):
    assert threading.current_thread() is threading.main_thread()
    trainer = a_trainer(tiny_folders, tmp_path)

    def press(step, *_):
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.run(STEPS, press)
    assert checkpoints(tmp_path)[0].stem == "step-00000003"


def test_only_the_newest_checkpoints_are_kept(tiny_folders, tmp_path):
    a_trainer(tiny_folders, tmp_path, changes={"save_every": 1}).run(STEPS)
    assert [path.stem for path in checkpoints(tmp_path)] == ["step-00000012", "step-00000011"]


def test_a_damaged_checkpoint_is_passed_over(tiny_folders, tmp_path, caplog):
    whole = a_trainer(tiny_folders, tmp_path / "whole").run(STEPS).sha256()
    folder = tmp_path / "damaged"
    a_trainer(tiny_folders, folder, changes={"save_every": 1}).run(7)
    newest = checkpoints(folder)[0]
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    newest.write_bytes(data)
    steps = []
    again = a_trainer(tiny_folders, folder)
    assert again.run(STEPS, lambda step, *_: steps.append(step)).sha256() == whole
    assert steps[0] == 7
    assert "step-00000007.safetensors is passed over: its bytes are not" in caplog.text


def test_a_checkpoint_of_another_training_is_passed_over(tiny_folders, tmp_path, caplog):
    a_trainer(tiny_folders, tmp_path, origin="one").run(5)
    other = a_trainer(tiny_folders, tmp_path, origin="other", seed=1)
    assert len(other.run(2).losses) == 2
    assert "belongs to another training" in caplog.text or other.step == 2


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tiny_folders, tmp_path):
    trainer = a_trainer(tiny_folders, tmp_path, changes={"save_every": 1})

    set_lambdas_of = trainer.before_step

    def spoil(model, step):
        set_lambdas_of(model, step)
        if step == 4:
            next(model.parameters()).data.fill_(float("inf"))

    trainer.before_step = spoil
    with pytest.raises(NonFiniteError, match=r"at step 4: lower the learning rate \(now 0.003\)"):
        trainer.run(STEPS)
    assert checkpoints(tmp_path)[0].stem == "step-00000004"
    assert len(a_trainer(tiny_folders, tmp_path).run(STEPS).losses) == STEPS


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tiny_folders, tmp_path):
    whole = a_trainer(tiny_folders, tmp_path / "1").run(1)
    parts = a_trainer(tiny_folders, tmp_path / "2", changes={"accumulate": 4}).run(1)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)
    for name, weight in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], weight, rtol=1e-3, atol=1e-4)


# Gradient checkpointing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_checkpointing_changes_no_bit(tiny_folders, tmp_path, dtype):
    plain, saving = (
        a_trainer(tiny_folders, tmp_path / str(recompute), recompute=recompute, changes={
            "dtype": dtype,
        }).run(6)
        for recompute in (False, True)
    )  # fmt: skip
    assert saving.sha256() == plain.sha256()


def passes_of_a_step(trainer) -> list[int]:
    """How often each linear of the first group of a block was computed in one step."""
    counts = [0] * len(trained_blocks(trainer.model))
    trainer.measure = None

    def count(index):
        counts[index] += 1

    for index, block in enumerate(trained_blocks(trainer.model)):
        linear = next(iter(trained_linears(block).values()))
        linear.register_forward_hook(lambda *_, index=index: count(index))
    trainer.run(1)
    return counts


def peak_of_a_step(trainer) -> int:
    """Bytes that a step takes at once beyond those it began with, as the allocator counts them."""
    trainer.measure = None
    trainer.run(1)  # makes the moments of the optimizer
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profile:
        trainer.run(2)
    found = profile.profiler.kineto_results.events()
    events = sorted((one for one in found if one.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def test_gradient_checkpointing_saves_memory(tiny_folders, tmp_path):
    plain, saving = (
        peak_of_a_step(a_trainer(tiny_folders, tmp_path / str(on), recompute=on, length=64))
        for on in (False, True)
    )
    assert saving < 0.7 * plain


def test_gradient_checkpointing_computes_every_block_twice(tiny_folders, tmp_path):
    assert passes_of_a_step(a_trainer(tiny_folders, tmp_path / "1")) == [1, 1, 1]
    assert passes_of_a_step(a_trainer(tiny_folders, tmp_path / "2", recompute=True)) == [2, 2, 2]


def test_gradient_checkpointing_lets_go_of_what_the_second_pass_has_noted(tiny_folders, tmp_path):
    trainer = a_trainer(tiny_folders, tmp_path, recompute=True)
    trainer.run(1)
    noted = [
        shared._seen
        for block in trained_blocks(trainer.model)
        for linear in trained_linears(block).values()
        for shared in [linear.shared]
    ]
    assert noted
    assert not any(noted)


# Arithmetic


def test_bfloat16_is_computed_on_any_device_and_float32_where_it_is_asked_for(
    tiny_folders, tmp_path
):
    seen = {}
    for dtype in ("float32", "bfloat16"):
        trainer = a_trainer(tiny_folders, tmp_path / dtype, changes={"dtype": dtype})
        linear = next(iter(trained_linears(trained_blocks(trainer.model)[0]).values()))
        outputs = []
        linear.register_forward_hook(lambda _, __, output, to=outputs: to.append(output.dtype))
        trainer.measure = None
        state = trainer.run(3)
        assert all(weight.dtype == torch.float32 for weight in state.weights.values())
        seen[dtype] = set(outputs), state.losses
    assert [dtypes for dtypes, _ in seen.values()] == [{torch.float32}, {torch.bfloat16}]
    (_, exact), (_, rounded) = seen.values()
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.05)


def test_the_recipe_decides_the_arithmetic_and_not_the_device():
    # Where there is no such device, torch warns that it would not be used; that is not ours to say.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = {
            device: [arithmetic(dtype, torch.device(device)) for dtype in ("float32", "bfloat16")]
            for device in ("cpu", "cuda")
        }
    for device, (exact, rounded) in chosen.items():
        assert (exact.device, exact._enabled) == (device, False)
        assert (rounded.device, rounded.fast_dtype) == (device, torch.bfloat16)
        assert rounded._enabled is (device == "cpu" or torch.cuda.is_available())


# The best weights


@pytest.mark.parametrize("kind", ["ce", "kd", "mix"])
def test_the_weights_that_held_out_windows_like_best_are_kept(tiny_folders, tmp_path, kind):
    trainer = a_trainer(tiny_folders, tmp_path, kind=kind)
    state = trainer.run(STEPS)
    assert list(state.held_out) == [0, 4, 8, STEPS]
    objectives = {step: one.objective for step, one in state.held_out.items()}
    assert state.best.held_out == min(objectives.values()) == objectives[state.best.step]
    if kind == "ce":
        assert all(one.objective == pytest.approx(one.nll) for one in state.held_out.values())
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if name in state.best.weights:
                parameter.copy_(state.best.weights[name])
    assert trainer.measure().objective == pytest.approx(state.best.held_out, rel=1e-6)


def test_a_training_that_only_makes_it_worse_keeps_its_start(tiny_folders, tmp_path):
    changes = {"rates": Rates(STEPS, 1.0), "save_every": 1}
    trainer = a_trainer(tiny_folders, tmp_path / "whole", changes=changes)
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    state = trainer.run(STEPS)
    assert state.best.step == 0
    assert all(torch.equal(weight, start[n]) for n, weight in state.best.weights.items())
    # Wherever it is stopped, the start is not forgotten.
    a_trainer(tiny_folders, tmp_path / "cut", changes=changes).run(9)
    again = a_trainer(tiny_folders, tmp_path / "cut", changes=changes).run(STEPS)
    assert again.sha256() == state.sha256()
    assert all(torch.equal(weight, start[n]) for n, weight in again.best.weights.items())


def test_held_out_windows_without_a_finite_loss_end_the_training(tiny_folders, tmp_path):
    trainer = a_trainer(tiny_folders, tmp_path)
    trainer.measure = lambda: HeldOut(1.0, float("inf"))
    with pytest.raises(NonFiniteError, match="of held-out windows must be finite; found inf after"):
        trainer.run(STEPS)


def test_the_order_visits_every_window_once_an_epoch():
    seen = [i for step in range(6) for i in window_order(24, 4, seed=3, step=step)]
    assert sorted(seen) == list(range(24))
    assert [i for step in range(6, 12) for i in window_order(24, 4, 3, step)] != seen
    assert len(window_order(3, 8, 0, 5)) == 8
    straddling = [i for step in range(3) for i in window_order(6, 4, 1, step)]
    assert sorted(straddling[:6]) == sorted(straddling[6:]) == list(range(6))


def test_settings_that_cannot_be_are_refused(tiny_folders, tmp_path):
    with pytest.raises(ValueError, match="found 4 windows for 1 processes of 3 parts"):
        a_trainer(tiny_folders, tmp_path, changes={"accumulate": 3})
    with pytest.raises(ValueError, match="objective kd needs the float model"):
        a_trainer(tiny_folders, tmp_path, kind="ce", changes={"objective": Objective("kd")})
