"""Exports of either format as dense models."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from normtweak_core.errors import InputError, VerificationError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.loading import load_export
from normtweak_core.export.writer import write_export
from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config


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


def test_a_folder_that_is_no_export_is_refused(source):
    with pytest.raises(InputError, match=r"an export folder holds normtweak\.json"):
        load_export(source, source, torch.float32, "cpu")
