"""Exports of every format as models in memory."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from normtweak_core.errors import InputError, VerificationError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.loading import load_export
from normtweak_core.export.writer import write_export, write_ternary_export
from tests.tiny_exports import quantize_all, save_tiny_model, ternary_all, tiny_config


@pytest.fixture(scope="module", params=["llama", "neox"])
def source(request, tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("float"), tiny_config(request.param))


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric"), [(2, 32, False), (3, None, False), (4, 64, True)]
)
def test_both_formats_are_the_same_model(source, tmp_path, bits, group_size, symmetric):
    layers = quantize_all(source, bits, group_size, symmetric)
    gain = next(n for n in load_file(source / "model.safetensors") if n.endswith("norm.weight"))
    replaced = {gain: torch.full((64,), 1.25)}
    models = {}
    for form in ("compressed-tensors", "gptq"):
        write_export(tmp_path / form, source, layers, replaced, ExportConfig(format=form))
        models[form] = load_export(tmp_path / form, source, torch.float32, "cpu")
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        logits = {form: model(ids, use_cache=False).logits for form, model in models.items()}
    assert torch.equal(logits["gptq"], logits["compressed-tensors"])
    read = models["gptq"]
    assert torch.equal(read.get_parameter(gain), replaced[gain])
    for name, layer in layers.items():
        assert torch.equal(read.get_parameter(f"{name}.weight"), layer.dequantize().half().float())
    assert not read.training


def test_a_weight_that_was_altered_is_refused_by_name(source, tmp_path):
    layers = quantize_all(source, 4, 32, True)
    folder = tmp_path / "out"
    write_export(folder, source, layers, {}, ExportConfig(format="gptq"))
    tensors = load_file(folder / "model.safetensors")
    name = sorted(layers)[0]
    tensors[f"{name}.scales"][0, 0] *= 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=rf"{name}\.weight of .* has another hash"):
        load_export(folder, source, torch.float32, "cpu")


def ternary_export(folder, source, replaced=None, dtype="float32"):
    layers = ternary_all(source, getattr(torch, dtype))
    config = ExportConfig(dtype=dtype)
    write_ternary_export(folder, source, layers, replaced or {}, config, rms_norm_eps=1e-5)
    return layers


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_ternary_export_is_the_model_that_stock_transformers_computes(source, tmp_path, dtype):
    gain = next(n for n in load_file(source / "model.safetensors") if n.endswith("norm.weight"))
    layers = ternary_export(tmp_path / "out", source, {gain: torch.full((64,), 1.25)}, dtype)
    ours = load_export(tmp_path / "out", source, torch.float32, "cpu")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(40).reshape(2, 20)
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert ours.get_parameter(gain)[0] == 1.25
    for name, layer in layers.items():
        assert torch.equal(ours.get_submodule(name).codes, layer.codes.float())
    assert not any(module.training for module in ours.modules())


@pytest.mark.parametrize("part", ["weight", "weight_scale", "rms_norm.weight"])
def test_an_altered_tensor_of_a_ternary_linear_is_refused_by_name(source, tmp_path, part):
    name = sorted(ternary_export(tmp_path / "out", source))[0]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors[f"{name}.{part}"].view(torch.uint8)[..., 0] ^= 1
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=rf"{name}\.{part} of .* has another hash"):
        load_export(tmp_path / "out", source, torch.float32, "cpu")


def test_a_folder_that_is_no_export_is_refused(source):
    with pytest.raises(InputError, match=r"an export folder holds normtweak\.json"):
        load_export(source, source, torch.float32, "cpu")
