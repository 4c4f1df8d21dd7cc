"""Models of Conv1D layers, as GPT-2: what a format holds of them, and what stock readers find."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, OpenAIGPTConfig

from normtweak_core.errors import InputError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.foreign.base import BaseWeights
from normtweak_core.export.formats import compressed_tensors
from normtweak_core.export.formats.checks import (
    GPTQ_READER,
    LinearShape,
    check_exportable,
    check_ternary_exportable,
)
from normtweak_core.export.formats.filled_in import require_gptq_opened
from normtweak_core.export.formats.scheme import Scheme
from normtweak_core.export.gguf.grid_checks import check_grid_exportable
from normtweak_core.export.loading import load_export
from normtweak_core.export.opening import load_quantized
from normtweak_core.export.sizes import size_check
from normtweak_core.export.verification.verify import verify_export
from normtweak_core.export.writer import write_export
from normtweak_core.finetune.linear import GridLinear
from normtweak_core.model.skeleton import build_skeleton
from normtweak_core.model.structure import find_linears
from normtweak_core.quantization.config import MixedBits, QuantizationConfig
from tests.gptq_reader import REPOSITORY, needs_gptq_reader
from tests.tiny_exports import quantize_all, read_json, round_to_nearest, save_tiny_model

SIZES = {"vocab_size": 256, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
GRIDS = [(b, g, s) for b in (2, 3, 4, 8) for g in (32, None) for s in (True, False)]
C_ATTN = "transformer.h.1.attn.c_attn"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    config = GPT2Config(**SIZES, bos_token_id=0, eos_token_id=0)
    return save_tiny_model(tmp_path_factory.mktemp("models") / "gpt2", config)


def written(out, source, grid=(4, 32, False), form="auto"):
    layers = quantize_all(source, *grid)
    return layers, write_export(out, source, layers, {}, ExportConfig(format=form))


def wrong(found, layers):
    """Names of weights of a model that are not those of the layers."""
    return [
        name
        for name, layer in layers.items()
        if not torch.equal(found[f"{name}.weight"], layer.dequantize().T.to(torch.float16))
    ]


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_the_library_itself_unpacks_what_is_stored_as_transposed(
    bits, group_size, symmetric, seeded
):
    weight = torch.randn((51, 96), generator=seeded(bits))  # outputs that fill no words
    layer = round_to_nearest(weight, bits, group_size, symmetric, torch.float16)
    tensors = compressed_tensors.pack_conv1d(layer, torch.float16, group_size or 48)
    scheme = Scheme(bits, group_size, symmetric, block=group_size or 48)
    config = compressed_tensors.quantization_config(scheme, ["lm_head"])
    group = config["config_groups"]["group_0"]
    assert (config["dequantize"], group["targets"]) == (True, ["Conv1D"])
    found = PackedQuantizationCompressor.decompress(tensors, QuantizationScheme(**group))
    assert torch.equal(found["weight"], layer.dequantize().T.to(torch.float16))
    again = compressed_tensors.unpack_linear(tensors, scheme)
    for field in ("codes", "scales", "zeros"):
        assert torch.equal(getattr(again, field), getattr(layer, field)), field


@pytest.mark.parametrize("grid", [(2, 32, False), (3, None, False), (4, None, True)])
def test_transformers_and_we_find_every_weight_and_the_size_is_predicted(tmp_path, gpt2, grid):
    layers, _ = written(tmp_path, gpt2, grid)
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    assert len(layers) == 8
    assert wrong(model.state_dict(), layers) == []
    ours = load_export(tmp_path, gpt2, torch.float16, "cpu").state_dict()
    assert all(torch.equal(ours[name], one) for name, one in model.state_dict().items())
    opened = load_quantized(tmp_path, torch.float32, "cpu").state_dict()
    assert wrong({name: one.half() for name, one in opened.items()}, layers) == []
    found = size_check(tmp_path, gpt2)
    found.require_sound()
    assert (len(found.quantized), found.kept) == (8, {"lm_head": "tied to the embedding"})


def test_the_independent_reader_accepts_it_and_says_what_was_exchanged(tmp_path, gpt2):
    _, record = written(tmp_path, gpt2, (3, None, False))
    report = verify_export(tmp_path)
    assert (report.num_tensors, report.num_quantized, report.logit_difference) == (28, 8, 0)
    export = read_json(tmp_path / "normtweak.json")["export"]
    assert (export["block"], export["group_size"]) == (64, None)
    assert record.scheme == Scheme(3, None, False, block=64)


def test_transformers_finds_every_weight_in_the_gguf_file_alone(tmp_path, gpt2):
    layers, record = written(tmp_path, gpt2, form="gguf")
    assert record.consumers["llama.cpp"]["architecture"] == "gpt2"
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "gguf",
        gguf_file="model-Q5_0.gguf",
        dtype=torch.float32,
        config=AutoConfig.from_pretrained(gpt2),  # it reads neither positions nor vocabulary
    )
    found, floats = model.state_dict(), AutoModelForCausalLM.from_pretrained(gpt2).state_dict()
    for name, layer in layers.items():
        assert torch.equal(found[f"{name}.weight"], layer.dequantize().T)
        assert torch.equal(found[f"{name}.bias"], floats[f"{name}.bias"].half().float())
    wpe = "transformer.wpe.weight"
    assert torch.equal(found[wpe], floats[wpe].half().float())
    sound = size_check(tmp_path, gpt2)
    sound.require_sound()
    assert sound.gguf.in_words().startswith("8 linears Q5_0; 5.5 bits per weight")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "relu"}, "its activation must be gelu_new .* and it is relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "layer_idx must be false, and it is true"),
        ({"scale_attn_weights": False}, "scale_attn_weights must be true, and it is false"),
    ],
)
def test_a_gpt2_that_llama_cpp_computes_otherwise_is_refused(config, message):
    wanted = ExportConfig(format="gguf"), QuantizationConfig(bits=4, group_size=32)
    shapes = {C_ATTN: LinearShape(192, 64, transposed=True)}
    check_grid_exportable(*wanted, {"model_type": "gpt2"}, shapes)
    with pytest.raises(InputError, match=message):
        check_grid_exportable(*wanted, {"model_type": "gpt2"} | config, shapes)


def test_what_no_reader_takes_apart_is_refused_by_key():
    linears = {C_ATTN: LinearShape(8, 64, transposed=True)}

    def check(**quantization):
        config = QuantizationConfig(**quantization)
        check_exportable(ExportConfig(), config, linears, reader_available=False)

    check(bits=4, group_size=32)  # zero points that only packed ones fail on
    with pytest.raises(InputError, match=r"bits must be one width for .* Conv1D.*: set one width"):
        check(bits=MixedBits(average=3.0, choose_from=(2, 4)))
    with pytest.raises(InputError, match=r"activation_bits must be null .* it is 8, .*remove it"):
        check(bits=4, symmetric=True, activation_bits=8)
    with pytest.raises(InputError, match=rf"nn\.Linear; {C_ATTN} is a Conv1D .*Quantize the model"):
        check_ternary_exportable(ExportConfig(), linears)


@needs_gptq_reader
def test_gptq_is_opened_where_a_model_fills_in_no_weight_by_name(tmp_path):
    source = save_tiny_model(tmp_path / "model", OpenAIGPTConfig(**SIZES))
    skeleton = build_skeleton(source, torch.float32)
    linears = {n: one for n, one in find_linears(skeleton).items() if ".h." in n}
    assert len(linears) == 8
    require_gptq_opened(skeleton, linears)
    layers, record = written(tmp_path / "out", source, (2, 32, False), "gptq")
    report = verify_export(tmp_path / "out", REPOSITORY / GPTQ_READER / "bin/python")
    assert (report.num_quantized, report.argmax_agreement) == (8, 1.0)
    assert "modules_in_block" not in (record.folder / "config.json").read_text()
    size_check(tmp_path / "out", source).require_sound()
    ours = load_export(tmp_path / "out", source, torch.float16, "cpu").state_dict()
    assert wrong(ours, layers) == []


def test_a_gptq_checkpoint_by_others_is_evaluated_and_taken_as_a_base(tmp_path, gpt2):
    layers, _ = written(tmp_path / "out", gpt2, (2, 32, False), "gptq")
    (tmp_path / "out/normtweak.json").unlink()
    opened = load_quantized(tmp_path / "out", torch.float16, "cpu").state_dict()
    assert wrong(opened, layers) == []
    base = BaseWeights(tmp_path / "out", gpt2)
    assert sorted(base.linears) == sorted(layers)
    read = {f"{name}.weight": base.read(f"{name}.weight").half() for name in layers}
    assert wrong(read, layers) == []


def test_checkpoints_with_the_names_of_the_first_release_are_read(tmp_path, gpt2):
    layers, _ = written(tmp_path / "out", gpt2, (2, 32, False), "gptq")
    tensors = load_file(tmp_path / "out/model.safetensors")
    short = {name.removeprefix("transformer."): one for name, one in tensors.items()}
    save_file(short, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
    opened = load_quantized(tmp_path / "out", torch.float16, "cpu").state_dict()
    assert wrong(opened, layers) == []


def test_a_trained_grid_starts_at_the_function_of_a_conv1d(gpt2, seeded):
    layers = quantize_all(gpt2, 3, 32, False)
    linear = AutoModelForCausalLM.from_pretrained(gpt2).get_submodule(C_ATTN)
    trained = GridLinear(linear, layers[C_ATTN], "full", torch.float16)
    x = torch.randn((5, 64), generator=seeded(1))
    linear.weight.data = layers[C_ATTN].dequantize().T.contiguous()
    assert torch.allclose(trained(x), linear(x), atol=1e-5)
    assert torch.equal(trained.quantized().codes, layers[C_ATTN].codes)
