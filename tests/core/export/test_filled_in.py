"""Models that fill in weights by name while they are loaded, which packed linears do not have."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from normtweak_core.dry_run import dry_run
from normtweak_core.errors import InputError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats.filled_in import filled_in
from normtweak_core.export.writer import write_export
from normtweak_core.model.skeleton import build_skeleton
from tests.core.model.families import save
from tests.tiny_exports import quantize_all, read_json


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ("gpt2", r"GPT2LMHeadModel does so with transformer\.h\.0\.attn\.c_proj, and loading ends"),
        ("mamba2", r"Mamba2ForCausalLM does so with backbone\.layers\.0\.mixer\.out_proj, and"),
        ("falcon", r"transformer\.h\.0\.self_attention\.query_key_value is a FalconLinear, which"),
    ],
)
def test_what_transformers_does_not_open_of_gptq_is_refused_with_the_format_it_opens(
    tmp_path, family, sentence
):
    with pytest.raises(InputError, match=rf"gptq is opened by .*{sentence}.*Use compressed-tensor"):
        dry_run(save(family, tmp_path), torch.float32, "cpu", 3, form="gptq")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rounds": True}, r"activation_bits must be null for .* RecurrentGemma.*: remove it"),
        ({"mixed": True}, r"bits must be one width for .*temporal_block\.linear_\w: set one width"),
    ],
)
def test_what_has_to_stay_packed_is_refused_where_a_weight_is_filled_in(
    tmp_path, options, sentence
):
    save("recurrent_gemma", tmp_path)
    dry_run(tmp_path, torch.float32, "cpu", 3)
    with pytest.raises(InputError, match=sentence):
        dry_run(tmp_path, torch.float32, "cpu", 3, **options)
    dry_run(save("llama", tmp_path / "llama"), torch.float32, "cpu", 3, **options)


def test_linears_of_a_class_of_their_own_are_unpacked_too(tmp_path):
    source = save("falcon", tmp_path / "model")
    layers = quantize_all(source, 4, 32, True)
    write_export(tmp_path / "out", source, layers, {}, ExportConfig())
    _, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())


def test_a_symmetric_export_of_such_a_model_is_unpacked_while_it_is_loaded(tmp_path):
    source = save("mamba", tmp_path / "model")
    layers = quantize_all(source, 4, None, True)
    layers = {name: one for name, one in layers.items() if not name.endswith("dt_proj")}
    record = write_export(tmp_path / "out", source, layers, {}, ExportConfig())
    assert read_json(record.folder / "config.json")["quantization_config"]["dequantize"] is True
    model, told = AutoModelForCausalLM.from_pretrained(record.folder, output_loading_info=True)
    assert not any(told.values())
    found = model.state_dict()
    for name, layer in layers.items():
        assert torch.equal(found[f"{name}.weight"], layer.dequantize().to(torch.float16))


def test_a_linear_is_named_only_where_it_has_no_weight(tmp_path):
    source = save("mamba", tmp_path / "model")
    in_proj, out_proj = (f"backbone.layers.1.mixer.{name}" for name in ("in_proj", "out_proj"))
    left = [in_proj, "backbone.layers.1.experts.0.up_proj"]  # which is no module
    assert filled_in(build_skeleton(source, torch.float32), left) is None
    assert filled_in(build_skeleton(source, torch.float32), [in_proj, out_proj]) == out_proj
