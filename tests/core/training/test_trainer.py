"""The training loop: it learns, resumes to the same bytes, and stops as it should."""

import signal
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from normtweak_core.errors import NonFiniteError
from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.schedule import lambdas
from normtweak_core.ternary.surgery import apply_surgery, plan_surgery, set_lambdas
from normtweak_core.training.checkpoint import checkpoints
from normtweak_core.training.objective import Objective
from normtweak_core.training.order import window_order
from normtweak_core.training.rates import Rates
from normtweak_core.training.trainer import Trainer, TrainingSetup

STEPS = 12
CONFIG = TernaryConfig(steps=STEPS, batch=4)


def a_trainer(tiny_folders, folder, *, kind="kd", changes=None, origin="same", seed=0):
    windows = torch.randint(96, (24, 16), generator=torch.Generator().manual_seed(1))
    model, teacher = (
        AutoModelForCausalLM.from_pretrained(tiny_folders["llama"]).eval() for _ in range(2)
    )
    teacher.requires_grad_(False)
    plan = plan_surgery(model, windows[:4])
    apply_surgery(model, plan, CONFIG)
    setup = {
        "steps": STEPS,
        "batch": 4,
        "rates": Rates(STEPS, 3e-3, weight_decay=0.1),
        "objective": Objective(kind),
        "save_every": 5,
        "seed": seed,
    }
    return Trainer(
        model,
        teacher if kind != "ce" else None,
        windows,
        TrainingSetup(**setup | (changes or {})),
        folder,
        origin,
        lambda m, step: set_lambdas(m, lambdas(CONFIG, step, len(plan.blocks)), ramp_norm=True),
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


def test_gradient_checkpointing_changes_nothing(tiny_folders, tmp_path):
    plain = a_trainer(tiny_folders, tmp_path / "1").run(3)
    saving = a_trainer(tiny_folders, tmp_path / "2")
    saving.model.activation_checkpointing_enable({"use_reentrant": False})
    saving.model.train()  # transformers checkpoints in train mode only; there is no dropout here
    assert saving.run(3).losses == pytest.approx(plain.losses, rel=1e-5)


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
