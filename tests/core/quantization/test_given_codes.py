"""Blocks that others have quantized: their codes stay, and everything else starts from theirs."""

import dataclasses
import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from normtweak_core import InputError, quantize
from normtweak_core.distributed.ranks import ALONE
from normtweak_core.errors import VerificationError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.float_type import choose_export_dtype
from normtweak_core.export.foreign.base import BaseWeights
from normtweak_core.export.foreign.kept import require_codes_kept
from normtweak_core.export.formats.checks import FloatTypeError
from normtweak_core.export.loading import load_export
from normtweak_core.finetune.scales import ScaleLinear
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.block import help_with, quantize_block
from normtweak_core.quantization.config import QuantizationConfig
from normtweak_core.quantization.plan import BlockPlan
from normtweak_core.quantization.streams import Streams
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.tweak.config import NormTweakConfig
from tests.core.distributed.threads import together

EXPORTS = Path(__file__).parents[2] / "data" / "exports"
FLOAT = EXPORTS / "float"
IDS = torch.randint(256, (16, 32), generator=torch.Generator().manual_seed(0))
TWEAK = NormTweakConfig(lr=1e-2, rollback=False)
LOADING = threading.Lock()  # transformers changes its classes while it makes a model
TUNED = {"calibration": IDS, "final_tune": {"steps": 8}, "progress": False}


def walk_of(name):
    with LOADING:
        base = BaseWeights(EXPORTS / name, FLOAT)
        model = StreamedModel(FLOAT, torch.float32, "cpu")
        return BlockWalk(model, IDS, base, FLOAT)


def first_block(name, tweak=TWEAK, ranks=ALONE, streams=None):
    walk = walk_of(name)
    plan = BlockPlan(0, 2, QuantizationConfig(), tweak, torch.float16)
    shared = walk.load(0), streams or walk.start(), walk.runner(0), plan
    if ranks.is_first:
        return quantize_block(*shared, ranks=ranks, given=walk.given(0))
    return help_with(*shared, ranks, walk.given(0))


def test_a_block_starts_from_the_codes_and_norms_of_the_checkpoint():
    name = "autoround-w2"
    stored = load_file(EXPORTS / name / "model.safetensors")
    done = first_block(name, tweak=NormTweakConfig(enabled=False))
    base = BaseWeights(EXPORTS / name, FLOAT)
    for layer, weight in done.layers.items():
        assert torch.equal(weight.codes, base.linear(f"model.layers.0.{layer}").codes)
    walk = walk_of(name)
    block = walk.load(0)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        of_theirs = stored[f"model.layers.0.{norm}.weight"]
        assert not torch.equal(block.get_parameter(f"{norm}.weight"), of_theirs.float())
        block.get_parameter(f"{norm}.weight").data.copy_(of_theirs)
    for layer, weight in done.layers.items():
        block.get_parameter(f"{layer}.weight").data.copy_(weight.dequantize())
    x_f, x_q = walk.start().x_f, walk.start().x_q
    assert torch.equal(done.streams.x_q, walk.runner(0)(block, x_q))
    assert torch.equal(done.streams.x_f, walk.runner(0)(walk.load(0), x_f))


def test_several_processes_make_the_same_of_given_codes(monkeypatch):
    monkeypatch.setattr("normtweak_core.quantization.streams.TOKENS_PER_MICRO_BATCH", 64)
    alone = first_block("gptqmodel-w2-v1")
    begin = walk_of("gptqmodel-w2-v1").start()
    spare = {use: torch.full_like(begin.x_f, torch.nan) for use in ("before", "target")}
    streams = Streams(begin.x_f, begin.x_q, spare)  # in memory that all of them see
    shared = together(2, lambda ranks: first_block("gptqmodel-w2-v1", TWEAK, ranks, streams))
    assert shared.report == alone.report
    assert alone.norms.keys() == shared.norms.keys() != set()
    for norm, master in alone.norms.items():
        assert torch.equal(shared.norms[norm], master)
    assert torch.equal(shared.streams.x_q, alone.streams.x_q)


@pytest.mark.parametrize(
    ("name", "form"), [("autoround-w4-symmetric", "auto"), ("gptqmodel-w4-act-order", "gptq")]
)
def test_an_export_holds_the_codes_and_tells_whose_they_are(name, form):
    result = quantize(FLOAT, base=EXPORTS / name, export=form, **TUNED)
    base, folder = BaseWeights(EXPORTS / name, FLOAT), result.record.folder
    assert require_codes_kept(folder, base) == 14
    manifest = json.loads((folder / "normtweak.json").read_text())
    assert manifest["lineage"]["base"] == str(EXPORTS / name)
    told = manifest["lineage"]["quantized_by"]
    assert told == {"auto": "auto-round 0.16.1", "gptq": "gptqmodel:7.7.0"}[form]
    assert f"(quantized by {told})" in (folder / "README.md").read_text()
    # Before any training it is the checkpoint's function; after it, another one.
    untrained = quantize(FLOAT, base=EXPORTS / name, export=form, effort="fast", calibration=IDS)
    model = load_export(untrained.record.folder, FLOAT, torch.float32, "cpu").state_dict()
    for linear in base.linears:
        rounded = base.linear(linear).dequantize().half().float()
        assert torch.equal(model[f"{linear}.weight"], rounded)
    for other, value in base.others.items():
        assert torch.equal(model[other], value.half().float())
    if form == "auto":  # there the held-out windows agree
        assert result.report.final_tune.accepted
        assert result.report.export_sha256 != untrained.report.export_sha256
    other = "autoround-w2" if form == "auto" else "gptqmodel-w4-v1"
    with pytest.raises(VerificationError, match=f"must have the codes of .*{other}; those of mod"):
        require_codes_kept(folder, BaseWeights(EXPORTS / other, FLOAT))


def test_a_float_type_that_does_not_hold_the_scales_is_refused():
    base = BaseWeights(EXPORTS / "gptqmodel-w4-v1", FLOAT)
    assert choose_export_dtype(ExportConfig(), FLOAT, IDS[:2], base=base).dtype is torch.float16
    with pytest.raises(FloatTypeError, match="bfloat16 does not: it does not hold the scales of"):
        choose_export_dtype(ExportConfig(dtype="bfloat16"), FLOAT, IDS[:2], base=base)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"bits": 2}, r"bits must be that of base, 4; found 2: leave it out"),
        ({"sweeps": 1}, r"sweeps is not read with base, whose codes are kept; found 1: remove it"),
        (
            {"effort": "best"},
            r"block_training.enabled must be false with base, whose codes are ke",
        ),
        ({"export": "gptq", "base": "none"}, r"base must be a folder, a hub id such as owner/name"),
    ],
)
def test_what_a_base_rules_out_is_said(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        quantize(FLOAT, **{"base": EXPORTS / "gptqmodel-w4-v1"} | arguments, calibration=IDS)


def test_another_models_base_is_refused():
    with pytest.raises(InputError, match="base must be made from the float model, with"):
        quantize("reference:llama", base=EXPORTS / "gptqmodel-w4-v1", calibration=IDS)


@pytest.mark.parametrize("negative", [False, True])
def test_scales_are_trained_where_columns_are_sorted_and_scales_negative(negative):
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 16, (6, 8), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 16, (6, 2), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(6, 2, generator=generator) + 0.5).half().float()
    scales[0] *= -1 if negative else 1
    g_idx = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0], dtype=torch.int32)
    weight = QuantizedWeight(codes, scales, zeros, 4, 4, False, g_idx=g_idx)
    linear = torch.nn.Linear(8, 6)
    learning = ScaleLinear(linear, weight, torch.float16)
    x = torch.randn(3, 8, generator=generator)
    linear.weight.data.copy_(weight.dequantize())
    torch.testing.assert_close(learning(x), linear(x), rtol=1e-5, atol=1e-5)
    learning.factors.data.mul_(1.5)
    longer = dataclasses.replace(weight, scales=learning.scales())
    assert torch.equal(longer.scales, (1.5 * scales).half().float())
    assert torch.equal(learning.dense().weight, longer.dequantize())
    learning(x).square().sum().backward()
    dense = longer.dequantize().requires_grad_(True)
    torch.nn.functional.linear(x, dense, linear.bias).square().sum().backward()
    steps = codes.float() - zeros.float()[:, g_idx.long()]
    for group in range(2):
        inside = g_idx == group
        slope = (dense.grad * steps)[:, inside].sum(1) * scales[:, group]
        torch.testing.assert_close(learning.factors.grad[:, group], slope, rtol=1e-3, atol=1e-3)
