import pytest
import torch
import transformers as hf
from families import FAMILIES, GROUPED, ODD_FAMILIES, build, save
from safetensors.torch import load_file, save_file
from torch import nn

from normtweak_core.errors import InputError
from normtweak_core.model.architecture import check_model_folder
from normtweak_core.model.structure import (
    find_blocks,
    find_linears,
    find_norms,
    linear_weight,
    set_linear_weight,
)

LLAMA_LINEARS = {
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
}
FUSED_LINEARS = {"attention.query_key_value", "attention.dense"}
MLP_LINEARS = {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}
TWO_NORMS = {"input_layernorm", "post_attention_layernorm"}
FOUR_NORMS = {*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"}
HEAD_NORMS = {"self_attn.q_norm", "self_attn.k_norm"}
STABLE_HEAD_NORMS = {
    *(f"self_attn.q_layernorm.norms.{head}" for head in range(4)),
    *(f"self_attn.k_layernorm.norms.{head}" for head in range(2)),
}

# family: (name of the block list, linears, norms of the stream, norms of heads, kind)
EXPECTED = {
    "llama": ("model.layers", LLAMA_LINEARS, TWO_NORMS, set(), "rms"),
    "mistral": ("model.layers", LLAMA_LINEARS, TWO_NORMS, set(), "rms"),
    "qwen2": ("model.layers", LLAMA_LINEARS, TWO_NORMS, set(), "rms"),
    "qwen3": ("model.layers", LLAMA_LINEARS, TWO_NORMS, HEAD_NORMS, "rms"),
    "gemma": ("model.layers", LLAMA_LINEARS, TWO_NORMS, set(), "rms_plus_one"),
    "gemma2": ("model.layers", LLAMA_LINEARS, FOUR_NORMS, set(), "rms_plus_one"),
    "gemma3": ("model.layers", LLAMA_LINEARS, FOUR_NORMS, HEAD_NORMS, "rms_plus_one"),
    "phi": (
        "model.layers",
        {*(f"self_attn.{name}_proj" for name in "qkv"), "self_attn.dense", "mlp.fc1", "mlp.fc2"},
        {"input_layernorm"},
        set(),
        "layer",
    ),
    "opt": (
        "model.decoder.layers",
        {*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "fc1", "fc2"},
        {"self_attn_layer_norm", "final_layer_norm"},
        set(),
        "layer",
    ),
    "gpt2": (
        "transformer.h",
        {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
        {"ln_1", "ln_2"},
        set(),
        "layer",
    ),
    "gpt_neox": ("gpt_neox.layers", FUSED_LINEARS | MLP_LINEARS, TWO_NORMS, set(), "layer"),
    "bloom": (
        "transformer.h",
        {"self_attention.query_key_value", "self_attention.dense"} | MLP_LINEARS,
        TWO_NORMS,
        set(),
        "layer",
    ),
    "falcon_alibi": (
        "transformer.h",
        {"self_attention.query_key_value", "self_attention.dense"} | MLP_LINEARS,
        {"ln_attn", "ln_mlp"},
        set(),
        "layer",
    ),
    "stablelm": ("model.layers", LLAMA_LINEARS, TWO_NORMS, STABLE_HEAD_NORMS, "layer"),
}


def on_meta(config):
    with torch.device("meta"):
        return hf.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", EXPECTED)
def test_blocks_linears_and_norms_are_found_by_structure(family):
    prefix, linears, stream, heads, kind = EXPECTED[family]
    model = on_meta(FAMILIES[family]())
    blocks = find_blocks(model)
    assert blocks.prefix == prefix
    assert blocks.modules == list(model.get_submodule(prefix))
    block = blocks.modules[1]
    assert set(find_linears(block)) == linears
    norms = find_norms(block)
    assert {name for name, norm in norms.items() if not norm.per_head} == stream
    assert {name for name, norm in norms.items() if norm.per_head} == heads
    assert {norm.kind for norm in norms.values()} == {kind}
    assert all(block.get_submodule(name) is norm.module for name, norm in norms.items())


def test_a_norm_of_one_plus_the_weight_that_centres_is_told_apart():
    config = hf.NemotronConfig(**GROUPED)
    norms = find_norms(find_blocks(on_meta(config)).modules[0])
    assert {norm.kind for norm in norms.values()} == {"layer_plus_one"}


def test_the_kind_does_not_depend_on_the_trained_gain():
    block = find_blocks(build("gemma")).modules[0]
    block.input_layernorm.weight.data.fill_(-1.0)  # a gain of zero
    assert find_norms(block)["input_layernorm"].kind == "rms_plus_one"
    assert torch.equal(block.input_layernorm.weight.data, torch.full((32,), -1.0))


def test_a_norm_of_all_heads_together_is_not_one_per_head():
    norms = find_norms(find_blocks(on_meta(hf.Olmo2Config(**GROUPED))).modules[0])
    assert not norms["self_attn.q_norm"].per_head


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_linear_computes_its_input_times_the_weight_transposed(family, seeded):
    linears = find_linears(find_blocks(build(family)).modules[0])
    for module in linears.values():
        weight = linear_weight(module)
        x = torch.randn(3, weight.shape[1], generator=seeded(1))
        bias = 0 if module.bias is None else module.bias
        assert torch.allclose(module(x), x @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_weight_that_is_set_is_the_weight_that_is_read(family, seeded):
    for module in find_linears(find_blocks(build(family)).modules[0]).values():
        parameter = module.weight
        new = torch.randn(linear_weight(module).shape, generator=seeded(2))
        set_linear_weight(module, new)
        assert torch.equal(linear_weight(module), new)
        assert module.weight is parameter


def test_a_set_weight_keeps_the_dtype_of_the_layer(seeded):
    module = nn.Linear(4, 3, dtype=torch.bfloat16)
    new = torch.randn(3, 4, generator=seeded(3))
    set_linear_weight(module, new)
    assert torch.equal(module.weight, new.to(torch.bfloat16))


def test_a_weight_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"must have the shape \[3, 4\], got \[4, 3\]"):
        set_linear_weight(nn.Linear(4, 3), torch.zeros(4, 3))


@pytest.mark.parametrize(
    "config",
    [
        hf.GptOssConfig(**GROUPED, num_local_experts=4, head_dim=8),
        hf.Llama4TextConfig(**GROUPED, num_local_experts=4, head_dim=8, intermediate_size_mlp=48),
    ],
    ids=["with biases and interleaved", "turned around"],
)
def test_experts_of_another_layout_are_refused(config):
    model = on_meta(config)
    with pytest.raises(InputError, match="experts must be stacked as gate_up_proj"):
        find_blocks(model)
    with pytest.raises(InputError, match=r"has other experts at .*Choose another model"):
        find_linears(model.model.layers[0])


class Stacked(nn.Module):
    """Three matrices of one kind, as experts and heads are kept."""

    def __init__(self, *extents):
        super().__init__()
        self.gate = nn.Parameter(torch.ones(*extents))


def block_with(part, router=None):
    block = nn.Module()
    block.mixer = nn.Module()
    block.mixer.part = part
    if router is not None:
        block.mixer.choice = router
    return block


@pytest.mark.parametrize(
    "part", [nn.ModuleList([nn.Linear(4, 4) for _ in range(3)]), Stacked(3, 4, 4)]
)
def test_several_of_one_kind_are_experts_where_something_routes_to_each(part):
    with pytest.raises(InputError, match=r"Module has other experts at mixer\.part"):
        find_linears(block_with(part, nn.Linear(4, 3)))
    find_linears(block_with(part, nn.Linear(3, 4)))
    find_linears(block_with(part))


@pytest.mark.parametrize("family", ["recurrent_gemma", "deepseek_v2", "qwen3_next"])
def test_no_experts_are_found_where_there_are_none(family, tmp_path):
    check_model_folder(save(family, tmp_path))
    assert len(find_blocks(on_meta(ODD_FAMILIES[family]())).modules) == 3


def test_a_config_that_counts_experts_is_told_by_the_weights(tmp_path):
    config = ODD_FAMILIES["deepseek_v2"]()
    config.first_k_dense_replace, config.n_routed_experts = 2, 4
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    check_model_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.experts.0.down_proj.bias"] = torch.zeros(32)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"n_routed_experts: 4 and .*experts.0.down_proj.bias"):
        check_model_folder(tmp_path)


def test_a_norm_that_takes_a_gate_is_a_norm_and_one_without_weights_is_none():
    norms = find_norms(find_blocks(on_meta(ODD_FAMILIES["qwen3_5"]())).modules[0])
    assert norms["linear_attn.norm"].kind == "gated"
    assert norms["linear_attn.norm"].per_head
    assert norms["input_layernorm"].kind == "rms_plus_one"
    assert find_norms(find_blocks(on_meta(ODD_FAMILIES["olmo"]())).modules[0]) == {}


def test_a_model_without_blocks_is_refused():
    model = nn.Sequential(nn.Embedding(8, 4), nn.ModuleList([nn.LayerNorm(4)]), nn.Linear(4, 8))
    with pytest.raises(InputError, match=r"must be a stack of blocks .* Sequential has none"):
        find_blocks(model)


def test_a_single_block_is_a_stack_too():
    config = FAMILIES["llama"]()
    config.num_hidden_layers = 1
    assert len(find_blocks(on_meta(config)).modules) == 1
