"""An export of a mixture of experts: stored by expert, found stacked by the stock reader."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from normtweak_core.errors import InputError
from normtweak_core.experts.stacked import stacked_linears
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats.checks import (
    check_exportable,
    check_ternary_exportable,
    linear_shapes,
)
from normtweak_core.export.loading import load_export, stream_export
from normtweak_core.export.opening import load_quantized
from normtweak_core.export.sizes import size_check
from normtweak_core.export.verification import reader
from normtweak_core.export.writer import write_export
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.source import check_model_folder, resolve_source
from normtweak_core.model.structure import find_linears, linear_weight
from normtweak_core.quantization.config import QuantizationConfig
from tests.tiny_exports import read_json, round_to_nearest, save_tiny_model

SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
}
NARROW = SIZES | {"num_experts": 12, "moe_intermediate_size": 32}
CONFIGS = {
    "mixtral": hf.MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3_moe": hf.Qwen3MoeConfig(**NARROW, head_dim=16),  # 10 comes behind 9, not behind 1
    "qwen2_moe": hf.Qwen2MoeConfig(**NARROW, shared_expert_intermediate_size=32),
}
FIRST = {
    "mixtral": "model.layers.0.block_sparse_moe.experts.3.w2",
    "qwen3_moe": "model.layers.0.mlp.experts.10.down_proj",
    "qwen2_moe": "model.layers.1.mlp.experts.10.up_proj",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    return {name: save_tiny_model(folder / name, config) for name, config in CONFIGS.items()}


def quantized(source, bits, group_size):
    linears = find_linears(hf.AutoModelForCausalLM.from_pretrained(source))
    return {
        name: round_to_nearest(linear_weight(linear), bits, group_size, True, torch.float16)
        for name, linear in linears.items()
        if name != "lm_head"
    }


@pytest.fixture(scope="module")
def exports(sources, tmp_path_factory):
    """An export of each model, in different widths, and what it was made of."""
    folder, made = tmp_path_factory.mktemp("exports"), {}
    for name, grid in {"mixtral": (4, 32), "qwen3_moe": (3, None), "qwen2_moe": (2, 16)}.items():
        layers = quantized(sources[name], *grid)
        record = write_export(
            folder / name, sources[name], layers, {}, ExportConfig(dtype="float16")
        )
        made[name] = record.folder, layers
    return made


@pytest.mark.parametrize("family", CONFIGS)
def test_the_stock_reader_finds_every_expert_bit_for_bit(family, exports, sources):
    folder, layers = exports[family]
    model, info = hf.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = find_linears(model)
    for name, weight in layers.items():
        assert torch.equal(linear_weight(found[name]), weight.dequantize().half()), name
    ours = load_export(folder, sources[family], torch.float16, "cpu").state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())


def test_an_export_is_opened_to_be_measured_and_not_to_be_quantized_again(exports, sources):
    folder, _ = exports["mixtral"]
    assert resolve_source(ModelConfig(source=str(folder))).path == folder
    with pytest.raises(InputError, match=r"is already quantized \(compressed-tensors\)"):
        check_model_folder(folder)
    opened = load_quantized(folder, torch.float16, "cpu").state_dict()
    ours = load_export(folder, sources["mixtral"], torch.float16, "cpu").state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in opened.items())


@pytest.mark.parametrize("family", CONFIGS)
def test_a_mixture_read_block_by_block_computes_what_the_whole_one_does(family, exports, sources):
    folder, source = exports[family][0], sources[family]
    ids = torch.arange(60).view(3, 20)
    with torch.no_grad():
        whole = load_export(folder, source, torch.float32, "cpu")(ids, use_cache=False).logits
        assert torch.equal(stream_export(folder, source, torch.float32, "cpu").logits(ids), whole)


@pytest.mark.parametrize("family", CONFIGS)
def test_files_and_config_have_the_names_of_the_source(family, exports, sources):
    folder, _ = exports[family]
    stored, source = (load_file(place / "model.safetensors") for place in (folder, sources[family]))
    parts = ("weight_packed", "weight_scale", "weight_shape")
    assert {f"{FIRST[family]}.{part}" for part in parts} <= stored.keys()
    assert {name.rpartition(".")[0] for name in stored} == {
        name.rpartition(".")[0] for name in source
    }
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert told["dequantize"] is True
    gates = {name for name in linear_names(source) if name.endswith("gate")}
    assert set(told["ignore"]) == {"lm_head", *gates}


def linear_names(tensors):
    return {name.removesuffix(".weight") for name, one in tensors.items() if one.dim() == 2}


@pytest.mark.parametrize("family", CONFIGS)
def test_every_linear_is_accounted_for_and_the_router_is_float(family, exports, sources):
    folder, layers = exports[family]
    check = size_check(folder, sources[family])
    check.require_sound()
    assert sorted(check.quantized) == sorted(layers)
    routers = [name for name, why in check.kept.items() if why == "router"]
    assert len(routers) == (4 if family == "qwen2_moe" else 2)
    assert check.in_words().startswith(f"100 % of linears accounted for: {len(layers)} quantized")
    assert f"{len(routers)} in float (router)" in check.in_words()


@pytest.mark.parametrize("family", CONFIGS)
def test_the_reader_of_the_verification_finds_nothing_wrong(family, exports):
    assert reader.examine(exports[family][0])["problems"] == []


@pytest.mark.parametrize(
    ("part", "kinds"), [("weight_packed", {"weight", "file"}), ("weight_scale", {"scales", "file"})]
)
def test_the_reader_finds_one_altered_expert(part, kinds, exports, sources, tmp_path):
    out = tmp_path / "altered"
    write_export(out, sources["mixtral"], exports["mixtral"][1], {}, ExportConfig(dtype="float16"))
    file, name = out / "model.safetensors", f"{FIRST['mixtral']}.{part}"
    tensors = load_file(file)
    tensors[name][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    problems = reader.examine(out)["problems"]
    assert kinds <= {problem["what"] for problem in problems}
    named = {problem["name"] for problem in problems if problem["what"] == "weight"}
    assert named == {"model.layers.0.mlp.experts.down_proj"}


def test_the_manifest_tells_where_each_matrix_of_a_stack_is(exports):
    tensors = read_json(exports["mixtral"][0] / "normtweak.json")["tensors"]
    entry = tensors["model.layers.0.mlp.experts.gate_up_proj"]
    assert entry["shape"] == [4, 128, 64]
    assert [one["stored"].partition("experts.")[2] for one in entry["linears"][:3]] == [
        "0.w1",
        "0.w3",
        "1.w1",
    ]


def test_an_expert_that_is_not_quantized_is_refused(sources, exports, tmp_path):
    layers = dict(exports["mixtral"][1])
    del layers["model.layers.0.mlp.experts.1.up_proj"]
    with pytest.raises(ValueError, match=r"every expert must be quantized; .*1\.up_proj is not"):
        write_export(tmp_path / "out", sources["mixtral"], layers, {}, ExportConfig())


SYMMETRIC = QuantizationConfig(bits=4, group_size=32, symmetric=True)


def test_what_no_stock_reader_opens_is_refused_before_any_work(sources):
    linears = linear_shapes(sources["qwen2_moe"])
    assert not any(name.endswith("gate") for name in linears)
    check_exportable(ExportConfig(), SYMMETRIC, linears, reader_available=False)
    asymmetric = SYMMETRIC.model_copy(update={"symmetric": False})
    with pytest.raises(InputError, match=r"^quantization\.symmetric must be true for a mixture"):
        check_exportable(ExportConfig(), asymmetric, linears, reader_available=False)
    with pytest.raises(InputError, match=r"gptq holds no mixture of experts .* compressed-tensors"):
        check_exportable(ExportConfig(format="gptq"), SYMMETRIC, linears, reader_available=True)
    with pytest.raises(InputError, match="ternary training needs a model without experts"):
        check_ternary_exportable(ExportConfig(), linears)


def test_zero_points_of_experts_are_still_not_opened(exports, tmp_path):
    """Where this fails, transformers has learned it, and the refusal can go."""
    folder, _ = exports["mixtral"]
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        rows, groups = tensors[name].shape
        zeros = torch.full((rows // 8, groups), 0x77777777, dtype=torch.int32)
        tensors[name.replace("weight_scale", "weight_zero_point")] = zeros
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="automatic conversion of the weights"):
        hf.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_stack_lists_experts_by_number():
    experts = hf.AutoModelForCausalLM.from_config(CONFIGS["qwen3_moe"]).model.layers[0].mlp.experts
    stacks = stacked_linears("m", experts)
    assert stacks["m.down_proj"] == [f"m.{number}.down_proj" for number in range(12)]
    assert stacks["m.gate_up_proj"][18:22] == [
        f"m.{number}.{part}_proj" for number in (9, 10) for part in ("gate", "up")
    ]
