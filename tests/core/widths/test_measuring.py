"""Costs of widths against whole dense models; trials on disk and in any order."""

import pytest
import torch

from normtweak_core.evaluate.divergence import compare
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears, set_linear_weight
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.gptq import gptq
from normtweak_core.quantization.grid import GridSpec
from normtweak_core.quantization.streams import num_training_windows
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.widths import measuring
from normtweak_core.widths.measuring import Measuring
from normtweak_core.widths.trial import Trials, load_trials, save_trials

CONFIG = QuantizationConfig(bits={"average": 3, "choose_from": [2, 3]}, group_size=16)


def walk_of(folder, seeded):
    ids = torch.randint(0, 96, (16, 24), generator=seeded(3))
    return BlockWalk(StreamedModel(folder, torch.float32, "cpu"), ids)


def trials_of(walk, config=CONFIG):
    trials = Trials(walk, config, torch.float16)
    return [trials.block(index) for index in range(walk.num_blocks)]


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_a_width_costs_what_the_logits_lose(family, tiny_folders, seeded):
    """Of each width of ``choose_from``, with all other groups at the narrowest."""
    folder = tiny_folders[family]
    walk = walk_of(folder, seeded)
    trials = trials_of(walk)
    measured = Measuring(walk_of(folder, seeded), trials.__getitem__)
    costs = [cost for index in range(walk.num_blocks) for cost in measured.block(index)]
    float_model = load_causal_lm(folder, torch.float32, "cpu")
    model = load_causal_lm(folder, torch.float32, "cpu")
    linears = find_linears(model)
    held_out = walk.input_ids[num_training_windows(16) :]

    def put(index, layers):
        for name, weight in layers.items():
            prefix = walk.model.block_prefix(index)
            set_linear_weight(linears[f"{prefix}.{name}"], weight.dequantize())

    groups = [(index, group) for index, block in enumerate(trials) for group in block]
    for index, group in groups:
        put(index, group[2])
    narrowest = compare(model, float_model, held_out).kl.mean
    assert len(costs) == len(groups) == 3 * 4
    for cost, (index, group) in zip(costs, groups, strict=True):
        put(index, group[3])
        wider = compare(model, float_model, held_out).kl.mean
        put(index, group[2])
        assert cost.block == index
        assert cost.linears == {name: tuple(one.codes.shape) for name, one in group[2].items()}
        assert cost.divergence[2] == pytest.approx(narrowest, rel=1e-4)
        assert cost.divergence[3] == pytest.approx(wider, rel=1e-4)
        assert cost.divergence[3] != cost.divergence[2]


def test_a_trial_is_solved_on_what_the_float_model_hands_it(tiny_folders, seeded):
    walk = walk_of(tiny_folders["llama"], seeded)
    group = trials_of(walk)[0][0]
    model = load_causal_lm(tiny_folders["llama"], torch.float32, "cpu")
    attention = model.model.layers[0].self_attn
    seen = []
    attention.q_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(walk.input_ids[: num_training_windows(16)])
    x = seen[0].flatten(0, 1)
    H = 2 / len(x) * x.T @ x
    W = torch.cat([getattr(attention, name).weight for name in ("q_proj", "k_proj", "v_proj")])
    spec = GridSpec(3, False, True, torch.float16)
    wanted = gptq(W.detach(), H, 16, spec, act_order=True, percdamp=0.01, exponents=(3.0,))
    found = torch.cat([one.codes for one in group[3].values()])
    assert list(group[3]) == [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    assert (found != wanted.weight.codes).float().mean() < 0.005  # ties of rounding


def test_trials_come_back_exactly_in_order(tiny_folders, seeded, tmp_path):
    for groups in trials_of(walk_of(tiny_folders["neox"], seeded)):
        save_trials(tmp_path / "block", groups)
        again = load_trials(tmp_path / "block", CONFIG)
        assert [list(group) for group in again] == [[2, 3]] * len(groups)
        for group, wanted in zip(again, groups, strict=True):
            for width in (2, 3):
                assert group[width].keys() == wanted[width].keys()
                for name, weight in wanted[width].items():
                    assert group[width][name].bits == width
                    assert torch.equal(group[width][name].dequantize(), weight.dequantize())


def test_going_on_in_the_middle_measures_the_same(tiny_folders, seeded, monkeypatch):
    folder = tiny_folders["llama"]
    trials = trials_of(walk_of(folder, seeded))
    later = Trials(walk_of(folder, seeded), CONFIG, torch.float16).block(2)
    for group, wanted in zip(later, trials[2], strict=True):
        for name, weight in wanted[3].items():
            assert torch.equal(group[3][name].codes, weight.codes)
    measured = Measuring(walk_of(folder, seeded), trials.__getitem__)
    whole = [measured.block(index) for index in range(3)]
    monkeypatch.setattr(measuring, "KEPT_BYTES", 0)  # and every block is read again
    assert Measuring(walk_of(folder, seeded), trials.__getitem__).block(2) == whole[2]


def test_round_to_nearest_needs_no_statistics(tiny_folders, seeded):
    config = CONFIG.model_copy(update={"method": "rtn"})
    walk = walk_of(tiny_folders["llama"], seeded)
    for group in trials_of(walk, config)[1]:
        for width, layers in group.items():
            for name, weight in layers.items():
                original = find_linears(walk.load(1))[name].weight
                step = weight.scales.repeat_interleave(16, 1)
                far = (weight.dequantize() - original).abs() / step
                assert weight.bits == width
                assert far.median() <= 0.5
