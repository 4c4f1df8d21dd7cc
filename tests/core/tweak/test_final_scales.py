"""The final tune with scales: codes stay, scales and norms learn, and what is kept is exported."""

from dataclasses import replace

import pytest
import torch

from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears, linear_weight
from normtweak_core.quantization.dense_model import dense_model, put_scales
from normtweak_core.quantization.gptq import round_to_nearest
from normtweak_core.quantization.grid import GridSpec
from normtweak_core.tweak.config import FinalTuneConfig
from normtweak_core.tweak.final import (
    TuningWindows,
    final_tune,
    put_tuned,
    scale_factors,
    walked_targets,
)
from normtweak_core.tweak.tweak import norm_parameters
from tests.core.model.families import save

HALF = torch.float16


@pytest.fixture
def case(tiny_folders, seeded):
    """What builds the quantized model, its linears, the float model's targets and the windows."""
    folder = tiny_folders["llama"]
    streamed = StreamedModel(folder, torch.float32, "cpu")
    layers = {}
    for index in range(streamed.num_blocks):
        for name, linear in find_linears(streamed.load_block(index)).items():
            weight = linear_weight(linear).detach()
            solved = round_to_nearest(weight, 16, GridSpec(2, False, True, HALF)).weight
            layers[f"{streamed.block_prefix(index)}.{name}"] = solved
    windows = TuningWindows(torch.randint(0, 96, (24, 24), generator=seeded(6)), 21)
    expected = walked_targets(StreamedModel(folder, torch.float32, "cpu"), windows)

    def model():
        return dense_model(folder, layers, {}, torch.float32, HALF, "cpu")

    return model, layers, expected, windows


def tuned(case, config):
    model, layers, expected, windows = case
    quantized = model()
    if config.scales:
        put_scales(quantized, layers, HALF)
    return quantized, *final_tune(quantized, expected, windows, config, {}, HALF, seed=0)


def test_scales_bring_the_logits_nearer_than_norms_alone(case):
    config = FinalTuneConfig(steps=60, lr=3e-3, scale_lr=1e-2)
    _, norms, _ = tuned(case, config.model_copy(update={"scales": False}))
    _, both, _ = tuned(case, config)
    assert both.held_out_before == pytest.approx(norms.held_out_before, rel=1e-5)
    assert both.held_out_after < norms.held_out_after < norms.held_out_before


def test_what_is_kept_is_what_an_export_of_the_new_scales_computes(case):
    layers = case[1]
    quantized, report, trained = tuned(case, FinalTuneConfig(steps=20, scale_lr=1e-2))
    assert report.accepted
    norms, scales = put_tuned(quantized, trained, HALF)
    assert scales.keys() == layers.keys()
    assert sorted(norms) == sorted(norm_parameters(quantized))
    assert not scale_factors(quantized)  # plain linears again
    linears = find_linears(quantized)
    for name, weight in layers.items():
        assert torch.equal(scales[name], scales[name].half().float())
        assert not torch.equal(scales[name], weight.scales)
        exported = replace(weight, scales=scales[name])
        assert torch.equal(linears[name].weight, exported.dequantize())
    for name, master in norms.items():
        assert torch.equal(quantized.get_parameter(name), master.half().float())


def test_a_tune_that_hurts_leaves_every_scale(case):
    model, *_ = case
    quantized, report, trained = tuned(case, FinalTuneConfig(steps=5, lr=5.0, scale_lr=0.5))
    assert not report.accepted
    assert put_tuned(quantized, trained, HALF) == ({}, {})
    for name, value in model().state_dict().items():
        assert torch.equal(quantized.state_dict()[name], value)


def test_experts_keep_their_scales(tmp_path, seeded):
    folder = save("mixtral", tmp_path / "mixtral")
    streamed = StreamedModel(folder, torch.float32, "cpu")
    layers = {
        f"{streamed.block_prefix(0)}.{name}": round_to_nearest(
            linear_weight(linear).detach(), 16, GridSpec(4, True, True, HALF)
        ).weight
        for name, linear in find_linears(streamed.load_block(0)).items()
    }
    model = dense_model(folder, layers, {}, torch.float32, HALF, "cpu")
    put_scales(model, layers, HALF)
    learning = {name.removesuffix(".factors") for name in scale_factors(model)}
    assert learning == {name for name in layers if ".experts." not in name}
    assert len(learning) == 4
