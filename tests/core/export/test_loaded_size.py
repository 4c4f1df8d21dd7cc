"""What an export takes when stock transformers has loaded it: what docs/formats.md says of it."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from normtweak_core.export.config import ExportConfig
from normtweak_core.export.writer import write_export
from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config


def block_bytes(model):
    return sum(t.nbytes for name, t in model.state_dict().items() if ".layers." in name)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_symmetric_export_is_packed_until_it_computes_and_an_asymmetric_one_never(
    tmp_path, symmetric
):
    config = tiny_config("llama", hidden_size=256, intermediate_size=512)
    source = save_tiny_model(tmp_path / "model", config)
    layers = quantize_all(source, 4, 128, symmetric)
    write_export(tmp_path / "out", source, layers, {}, ExportConfig(dtype="float16"))
    whole = block_bytes(AutoModelForCausalLM.from_pretrained(source)) / 2  # in float16
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert block_bytes(model) / whole == pytest.approx(0.26 if symmetric else 1.0, abs=0.01)
    with torch.inference_mode():
        model(torch.arange(8)[None])
    assert block_bytes(model) / whole == pytest.approx(1.0, abs=0.02)
