"""The start from GPTQ: latent weights round to its codes, and the model is far nearer to float."""

import pytest
import torch
from transformers import AutoTokenizer

from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.source import reference_folder
from normtweak_core.quantization.gptq import gptq
from normtweak_core.quantization.grid import GridSpec, fit_grid
from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.gptq_start import GptqStart, ternary_latent
from normtweak_core.ternary.quantizers import absmean, absmean_scale, ternary_codes
from normtweak_core.ternary.surgery import apply_surgery, plan_surgery, set_lambdas
from normtweak_core.training.objective import divergence
from tests.core.model.families import build

SPEC = GridSpec(2, True, True, torch.float32, "ternary", one_scale=True)


def problem(generator, out=12, width=32):
    """A weight, and the Hessian of inputs that depend on each other."""
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    x = torch.randn(300, width, generator=generator) @ mixing @ mixing
    return torch.randn(out, width, generator=generator), 2 * x.T @ x / len(x)


def output_error(W, Q, H):
    return (((Q - W) @ H) * (Q - W)).sum().item()


def solved(W, H):
    settings = {"act_order": True, "percdamp": 0.01, "exponents": (2.0, 3.0, 4.0, 6.0), "sweeps": 4}
    return gptq(W, H, None, SPEC, **settings).weight


def test_a_grid_of_one_scale_is_fitted_to_all_rows_at_once(seeded):
    weight = torch.randn(8, 24, generator=seeded(0)) * torch.arange(1, 9)[:, None]
    importance = torch.rand(24, generator=seeded(1))
    scale, zero = fit_grid(weight[:, None], SPEC, importance[None], 3.0)
    assert len(scale.unique()) == 1
    assert (zero == 2).all()

    def error(s):
        return ((weight - s * (weight / s).round().clamp(-1, 1)).abs() ** 3 * importance).sum()

    tried = weight.abs().mean() * torch.arange(0.52, 2.0, 0.02)
    least = min(error(s).item() for s in tried)
    assert error(scale[0, 0]).item() <= least * 1.01


@pytest.mark.parametrize("seed", range(3))
def test_gptq_and_its_descent_keep_one_scale_and_beat_rounding(seeded, seed):
    W, H = problem(seeded(seed))
    found = solved(W, H)
    assert len(found.scales.unique()) == 1
    Q = found.dequantize()
    assert set((found.codes.float() - found.zeros.float()).unique().tolist()) <= {-1.0, 0.0, 1.0}
    best = min(
        output_error(W, s * (W / s).round().clamp(-1, 1), H)
        for s in W.abs().mean() * torch.arange(0.5, 2.5, 0.02)
    )
    assert output_error(W, Q, H) < 0.7 * best


@pytest.mark.parametrize("seed", range(3))
def test_latent_weights_round_to_what_gptq_finds(seeded, seed):
    W, H = problem(seeded(seed))
    latent, found = ternary_latent(W, H), solved(W, H)
    codes = found.codes.float() - found.zeros.float()
    assert torch.equal(ternary_codes(latent, absmean_scale(latent)), codes)
    torch.testing.assert_close(absmean(latent), found.dequantize(), rtol=1e-5, atol=1e-6)


def test_a_weight_of_zeros_stays_one(seeded):
    _, H = problem(seeded(0))
    assert not ternary_latent(torch.zeros(12, 32), H).any()


def operated(folder, **changes):
    """A model after surgery, what was inserted, and the float model."""
    model, teacher = (load_causal_lm(folder, torch.float32, "cpu") for _ in range(2))
    ids = windows(model)
    plan = plan_surgery(model, ids[:2])
    apply_surgery(model, plan, TernaryConfig(**changes))
    return model, teacher, plan, ids


def windows(model):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, model.config.vocab_size, (24, 16), generator=generator)


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "gemma2"])
def folder(request, tmp_path_factory):
    """A random model whose weights are large enough to matter."""
    model, place = build(request.param), tmp_path_factory.mktemp(request.param)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(4)
    model.save_pretrained(place)
    return place


def distance(model, teacher, ids):
    with torch.no_grad():
        return divergence(teacher(ids).logits, model(ids).logits).item()


@pytest.mark.parametrize("changes", [{"norm": "none"}, {"share_gains": False}], ids=str)
def test_the_model_starts_nearer_to_the_float_one_than_rounded(folder, changes):
    model, teacher, plan, ids = operated(folder, **changes)
    ones = [1.0] * len(plan.blocks)
    set_lambdas(model, ones, ramp_norm=True)
    rounded = distance(model, teacher, ids)
    start = GptqStart(model, plan, folder, ids, "cpu")
    for _ in plan.blocks:
        start.solve()
    set_lambdas(model, ones, ramp_norm=True)
    assert distance(model, teacher, ids) < 0.8 * rounded


def test_blocks_that_are_done_are_walked_through_to_the_same_bits(folder):
    model, _, plan, ids = operated(folder)
    first = GptqStart(model, plan, folder, ids, "cpu")
    found = [first.solve() for _ in plan.blocks]
    found = [{name: latent.clone() for name, latent in block.items()} for block in found]
    again, _, _, _ = operated(folder)
    second = GptqStart(again, plan, folder, ids, "cpu")
    for block in found[:-1]:
        second.put(block)
    assert second.done == len(found) - 1
    last = second.solve()
    assert all(torch.equal(last[name], latent) for name, latent in found[-1].items())


def test_a_trained_model_keeps_most_of_what_rounding_loses():
    folder = reference_folder("llama")
    text = (folder / "held-out.jsonl").read_text()[:40000]
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder).encode(text)[: 24 * 128])
    ids = ids.view(24, 128)
    model, teacher = (load_causal_lm(folder, torch.float32, "cpu") for _ in range(2))
    plan = plan_surgery(model, ids[:2])
    apply_surgery(model, plan, TernaryConfig(norm="none"))
    set_lambdas(model, [1.0] * len(plan.blocks), ramp_norm=True)
    rounded = distance(model, teacher, ids[16:])
    start = GptqStart(model, plan, folder, ids[:16], "cpu")
    for _ in plan.blocks:
        start.solve()
    assert distance(model, teacher, ids[16:]) < 0.2 * rounded
