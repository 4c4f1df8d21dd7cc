import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from normtweak_core.export.config import ExportConfig
from normtweak_core.export.writer import write_export
from tests.core.model.families import save
from tests.tiny_exports import quantize_all

READ_UNCALLED = ["lfm2", "bamba", "granite_hybrid", "mamba", "mamba2"]


@pytest.mark.parametrize("family", [*READ_UNCALLED, "falcon_h1", "qwen3_5", "olmo"])
def test_the_probe_is_what_stock_transformers_makes_of_the_export(family, tmp_path):
    source = save(family, tmp_path / "float")
    layers = quantize_all(source, 4, None, False, torch.float32)
    config = ExportConfig(dtype="float32")
    write_export(tmp_path / "export", source, layers, {}, config, dtype=torch.float32)
    probe = load_file(tmp_path / "export" / "verify" / "probe.safetensors")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    with torch.inference_mode():
        logits = stock(input_ids=probe["input_ids"], use_cache=False).logits[0]
    assert (probe["margin"] > 0).all()
    assert torch.allclose(logits[:, probe["columns"]], probe["logits"], rtol=1e-5, atol=1e-5)


def test_the_parameters_of_one_block_are_in_memory_at_a_time(tmp_path, monkeypatch):
    source = save("lfm2", tmp_path / "float")
    layers = quantize_all(source, 4, None, False, torch.float32)
    held = []

    def watched(model, **inputs):
        blocks = model.model.layers

        def count(*_):
            held.append(
                [sum(not p.is_meta for p in block.parameters()) > 0 for block in blocks].count(True)
            )

        for block in blocks:
            for part in block.modules():
                part.register_forward_pre_hook(count)
        return type(model).forward(model, **inputs)

    from transformers import Lfm2ForCausalLM

    monkeypatch.setattr(Lfm2ForCausalLM, "__call__", watched)
    config = ExportConfig(dtype="float32")
    write_export(tmp_path / "export", source, layers, {}, config, dtype=torch.float32)
    assert set(held) == {1}
