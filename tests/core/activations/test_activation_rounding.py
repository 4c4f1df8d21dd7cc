"""Rounded activations are those of the stock reader, bit for bit."""

import copy
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from torch import nn
from transformers import AutoModelForCausalLM

from normtweak_core.activations.rounding import put_linear, round_inputs, rounded_tokens
from normtweak_core.errors import InputError, VerificationError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.exported import exported_weights
from normtweak_core.export.formats.compressed_tensors import INPUTS
from normtweak_core.export.loading import load_export, stream_export
from normtweak_core.export.opening import load_quantized
from normtweak_core.export.verification.layer_probe import TOKENS, grid_input
from normtweak_core.export.verification.probe import streaming_model
from normtweak_core.export.verification.verify import read_manifest, verify_export
from normtweak_core.export.writer import write_export
from normtweak_core.finetune.config import FinetuneConfig
from normtweak_core.finetune.model import put_on_grids
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.quantization.dense_model import dense_model, put_scales
from normtweak_core.tweak.final import put_tuned
from tests.tiny_exports import quantize_all, read_json, save_tiny_model, tiny_config

READER = SimpleNamespace(quantization_status=QuantizationStatus.FROZEN)


def as_read(x):
    return forward_quantize(READER, x, "input", QuantizationArgs(**INPUTS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 33), (1, 1, 1), (7, 64), (2, 3, 4, 8)])
def test_every_number_is_the_readers(dtype, shape, seeded):
    x = torch.randn(shape, generator=seeded(1)) * torch.randn(shape, generator=seeded(2)).exp() ** 3
    assert torch.equal(rounded_tokens(x.to(dtype)), as_read(x.to(dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-7, 3e-6, 1e-4, 6e4])
def test_tokens_of_any_size_are_the_readers(dtype, size, seeded):
    x = (torch.randn(2, 9, 16, generator=seeded()).clamp(-1, 1) * size).to(dtype)
    assert torch.equal(rounded_tokens(x), as_read(x))


def test_a_token_is_rounded_by_its_own_largest_and_ties_go_to_the_even_number():
    x = torch.tensor([[[127.5, 0.5, 1.5, -2.5, 0.49], [-255.0, 1.0, 3.0, -0.98, 0.0]]])
    found = rounded_tokens(x)[0]
    assert found[0].tolist() == [127.0, 0.0, 2.0, -2.0, 0.0]
    assert found[1].tolist() == [-256.0, 0.0, 4.0, 0.0, 0.0]  # -128 is a level, 128 is none


def test_gradients_pass_as_if_nothing_was_rounded(seeded):
    linear, x = nn.Linear(6, 3), torch.randn(2, 4, 6, generator=seeded(), requires_grad=True)
    model = nn.Sequential(linear)
    round_inputs(model, ["0"])
    weights = torch.randn(2, 4, 3, generator=seeded(1))
    (model(x) * weights).sum().backward()
    assert torch.allclose(x.grad, weights @ linear.weight, atol=1e-6)
    wanted = torch.einsum("bto,bti->oi", weights, rounded_tokens(x))
    assert torch.allclose(linear.weight.grad, wanted, atol=1e-5)


def test_a_linear_in_the_place_of_another_reads_what_that_did_and_rounds_once(seeded):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    round_inputs(model, ["0"])
    round_inputs(model, ["0"])
    x = torch.randn(1, 4, 6, generator=seeded())
    plain = nn.Linear(6, 6)
    put_linear(model, "0", copy.deepcopy(plain))
    put_linear(model, "1", copy.deepcopy(plain))
    assert torch.equal(model[0](x), plain(rounded_tokens(x)))
    assert torch.equal(model[1](x), plain(x))
    assert torch.equal(copy.deepcopy(model)[0](x), plain(rounded_tokens(x)))
    assert len(model[0]._forward_pre_hooks) == 1


@pytest.fixture(scope="module", params=[("llama", 4, 32, "float32"), ("neox", 8, None, "float16")])
def exported(request, tmp_path_factory):
    """Source, export and layers of a model whose linears read rounded activations."""
    family, bits, group_size, dtype = request.param
    folder = tmp_path_factory.mktemp(family)
    source = save_tiny_model(folder / "source", tiny_config(family))
    layers = {
        name: dataclasses.replace(layer, activation_bits=8)
        for name, layer in quantize_all(source, bits, group_size, True).items()
    }
    windows = torch.arange(40).view(2, 20)
    write_export(folder / "out", source, layers, {}, ExportConfig(dtype=dtype), windows=windows)
    return source, folder / "out", layers, getattr(torch, dtype)


IDS = torch.arange(48).view(2, 24)


def logits(model):
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


def test_our_forward_is_the_stock_readers_bit_for_bit(exported):
    source, folder, layers, dtype = exported
    stock = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert stock.dtype is dtype
    weights = exported_weights(folder, read_manifest(folder))
    assert torch.equal(logits(streaming_model(weights, source, dtype)[0]), stock)
    # What is evaluated: of float16 numbers, a few are summed to another last bit.
    ours = load_export(folder, source, dtype, "cpu")
    streamed = stream_export(folder, source, dtype, "cpu").logits(IDS)
    others = [logits(load_quantized(folder, dtype, "cpu")), streamed]
    assert all(torch.equal(one, logits(ours)) for one in others)
    off = (logits(ours) - stock).abs().mean() / stock.abs().max()
    assert off <= (0 if dtype is torch.float32 else 2e-2)
    for name, module in ours.named_modules():
        if isinstance(module, nn.Linear):
            assert getattr(module, "rounds_inputs", False) == (name in layers)


@pytest.mark.parametrize("bits", [2, 3])
def test_readers_round_beside_every_width(bits, tmp_path):
    source = save_tiny_model(tmp_path / "source", tiny_config("llama"))
    layers = {
        name: dataclasses.replace(layer, activation_bits=8)
        for name, layer in quantize_all(source, bits, 32, True).items()
    }
    write_export(tmp_path / "out", source, layers, {}, ExportConfig(dtype="float32"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ours = load_export(tmp_path / "out", source, torch.float32, "cpu")
    assert torch.equal(logits(ours), logits(stock))


def test_verification_tells_readers_that_round_nothing(exported, tmp_path):
    _, folder, layers, dtype = exported
    done = verify_export(folder)
    assert done.logit_difference == 0.0
    assert done.num_quantized == len(layers)
    assert done.layer_difference < 1e-3
    if dtype is torch.float32:
        return  # one of them is enough: a reader takes seconds to start
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in folder.rglob("*.*"):
        (copied / path.relative_to(folder)).parent.mkdir(exist_ok=True)
        (copied / path.relative_to(folder)).write_bytes(path.read_bytes())
    config = read_json(copied / "config.json")
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = None
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match=rf"layer \({len(layers)}\)"):
        verify_export(copied)


def test_every_form_of_the_model_computes_what_the_export_does(exported):
    source, folder, layers, dtype = exported
    if dtype is not torch.float32:
        return  # what is trained is float32
    wanted = logits(load_export(folder, source, dtype, "cpu"))
    model = dense_model(source, layers, {}, dtype, dtype, "cpu")
    assert torch.equal(logits(model), wanted)
    put_scales(model, layers, dtype)
    assert torch.equal(logits(model), wanted)
    put_tuned(model, {}, dtype)
    assert torch.equal(logits(model), wanted)
    trained = load_causal_lm(source, dtype, "cpu")
    put_on_grids(trained, layers, {}, FinetuneConfig(), "full", dtype, 0)
    assert torch.equal(logits(trained), wanted)
    plain = {name: dataclasses.replace(one, activation_bits=None) for name, one in layers.items()}
    other = dense_model(source, plain, {}, dtype, dtype, "cpu")
    assert (logits(other) - wanted).abs().max() > 1e-3 * wanted.abs().max()


def test_a_model_that_rounds_otherwise_is_not_measured(exported, tmp_path):
    _, folder, *_ = exported
    config = read_json(folder / "config.json")
    for path in folder.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rounding = config["quantization_config"]["config_groups"]["group_0"]["input_activations"]
    rounding |= {"strategy": "tensor", "dynamic": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        load_quantized(tmp_path, torch.float32, "cpu")
    assert str(caught.value) == (
        "activations of a compressed-tensors model must be rounded to int8, per token, dynamic and "
        f"symmetric, to be measured here (strategy: token, dynamic: True); {tmp_path} has "
        "{'strategy': 'tensor', 'dynamic': False}: measure it with the program it was made for"
    )


@pytest.mark.parametrize("width", [1, 2, 64, 100])
def test_the_input_of_a_proof_meets_no_boundary_and_shows_what_does_not_round(width, seeded):
    weight = torch.randn(5, width, generator=seeded())
    x = grid_input(weight)
    assert torch.equal(x.half().float(), x)
    assert torch.equal(x.bfloat16().float(), x)
    steps, rounded = x * 32, rounded_tokens(x[None])[0] * 32
    assert steps.amax(dim=1).tolist() == [127.5] * TOKENS
    assert torch.equal(rounded, torch.where(steps == 127.5, 127.0, steps.round()))
    quarters = (steps - rounded)[steps < 127.5].abs()
    assert quarters.tolist() == [0.25] * TOKENS * (width - 1)
    if width == 64:
        missed = ((x - rounded / 32) @ weight[0]).abs() / (rounded / 32 @ weight.T).abs().max()
        assert (missed > 1e-2).all()  # the tolerance of float16
