"""A training's float model: whole where it fits beside the training, spread where it does not."""

from types import SimpleNamespace

import torch

from normtweak_core.memory import limited
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.training.objective import Objective, held_out_losses
from normtweak_core.training.processes import Processes
from normtweak_core.training.sharding import shard
from tasks.stages.training.teacher import teacher_of
from tests.tiny_exports import save_tiny_model, tiny_config


def test_a_teacher_without_room_teaches_the_same(tmp_path):
    folder = save_tiny_model(tmp_path / "model", tiny_config("llama"))
    job = SimpleNamespace(folder=folder, device="cpu", model=ModelConfig(source=str(folder)))
    trained = load_causal_lm(folder, torch.float32, "cpu").requires_grad_(True)
    ids = torch.arange(96).view(4, 24)
    with torch.no_grad():
        trained.model.norm.weight *= 1.5
    found = []
    for most in (None, 1):
        with limited(most):
            teacher = teacher_of(job, trained, Processes())
        assert any(one.is_meta for one in teacher.parameters()) is (most == 1)
        shard(teacher, Processes(), torch.device("cpu"))  # as a trainer does
        found.append(held_out_losses(trained, teacher, ids, Objective("mix", 0.5, 1.0, 0.1)))
    assert found[0] == found[1]
    assert found[0].objective != found[0].nll
