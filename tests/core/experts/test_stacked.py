"""The linears of experts: views into stacked weights, by the names and values of the files."""

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn

from normtweak_core.errors import InputError
from normtweak_core.experts.names import first_odd_tensor, mixes_experts, router_names
from normtweak_core.experts.naming import Naming
from normtweak_core.experts.stacked import between, find_mixtures, find_routers, is_mixture
from normtweak_core.export.formats.checks import linear_shapes
from normtweak_core.model.skeleton import LazyWeights, build_skeleton
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_linears, linear_weight, set_linear_weight
from tests.core.model.families import MIXTURES, build, save

ROUTERS = {
    "mixtral": {"mlp.gate"},
    "qwen3_moe": {"mlp.gate"},
    "qwen2_moe": {"mlp.gate", "mlp.shared_expert_gate"},
    "olmoe": {"mlp.gate"},
    "deepseek_v3": {"mlp.gate"},
    "glm4_moe": {"mlp.gate"},
    "lfm2_moe": {"feed_forward.gate"},
    "hunyuan_moe": {"mlp.gate.wg"},
    "phimoe": {"mlp.router"},
}


@pytest.mark.parametrize("family", MIXTURES)
def test_every_linear_of_an_expert_is_the_stored_matrix_and_its_router_none(family, tmp_path):
    save(family, tmp_path)
    skeleton = build_skeleton(tmp_path, torch.float32)
    naming = Naming(skeleton, LazyWeights(skeleton, tmp_path, torch.float32, "cpu"))
    stored = load_file(tmp_path / "model.safetensors")
    streamed = StreamedModel(tmp_path, torch.float32, "cpu")
    block, prefix = streamed.load_block(2), streamed.block_prefix(2)
    linears = find_linears(block)
    for name, linear in linears.items():
        own = stored[f"{naming.linear(f'{prefix}.{name}')}.weight"]
        assert torch.equal(linear_weight(linear), own), name
    assert sum(mixes_experts([name]) for name in linears) == 4 * 3
    assert find_routers(block).keys() == ROUTERS[family]
    assert not find_routers(block).keys() & linears.keys()
    # What headers alone tell is the same.
    shapes = linear_shapes(tmp_path)
    assert {naming.linear(f"{prefix}.{name}") for name in linears} == {
        name for name in shapes if name.startswith(naming.linear(prefix) + ".")
    }


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_computes_what_its_linears_do(family):
    experts = next(iter(find_mixtures(build(family)).values()))
    generator = torch.Generator().manual_seed(3)
    x, weights = (torch.randn(7, size, generator=generator) for size in (32, 2))
    chosen = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(7)])
    expected = torch.zeros(7, 32)
    for expert in range(4):
        share = ((chosen == expert) * weights).sum(dim=1, keepdim=True)
        expected += share * (between(experts, expert, x) @ experts.down_proj[expert].T)
    torch.testing.assert_close(experts(x, chosen, weights), expected, rtol=1e-4, atol=1e-5)


def test_what_is_written_to_a_linear_is_in_the_stack_and_nowhere_else():
    model = build("mixtral")
    experts = model.model.layers[1].mlp.experts
    before = experts.gate_up_proj.clone()
    new = torch.ones(48, 32)
    set_linear_weight(find_linears(model)["model.layers.1.mlp.experts.2.up_proj"], new)
    assert torch.equal(experts.gate_up_proj[2, 48:], new)
    experts.gate_up_proj.data[2, 48:] = before[2, 48:]
    assert torch.equal(experts.gate_up_proj, before)
    with pytest.raises(ValueError, match=r"must have the shape \[48, 32\]"):
        set_linear_weight(find_linears(model)["model.layers.1.mlp.experts.2.up_proj"], new.T)


def test_a_stack_of_another_layout_is_no_mixture():
    experts = build("mixtral").model.layers[0].mlp.experts
    assert is_mixture(experts)
    for name, value in {"is_transposed": True, "has_gate": False, "has_bias": None}.items():
        kept = getattr(experts, name)
        setattr(experts, name, value)
        assert not is_mixture(experts), name
        setattr(experts, name, kept)
    experts.scale = nn.Parameter(torch.ones(4))
    assert not is_mixture(experts)


def test_a_missing_or_misshapen_matrix_of_an_expert_is_named(tmp_path):
    file = save("mixtral", tmp_path) / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    matrix = tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"gate_up_proj it lacks matrix 1 of expert 2\. Fetch"):
        StreamedModel(tmp_path, torch.float32, "cpu")
    save_file(tensors | {name: matrix[:-1]}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"the shape \[48, 32\] .* stored as \[47, 32\]"):
        StreamedModel(tmp_path, torch.float32, "cpu").load_block(1)


def test_tensors_that_are_merged_in_another_way_are_refused(tmp_path):
    config = hf.GraniteMoeConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="a mixture of experts must store each matrix"):
        build_skeleton(tmp_path, torch.float32)


def test_names_tell_experts_routers_and_what_is_odd():
    shapes = {
        "m.0.mlp.experts.0.w1.weight": [8, 4],
        "m.0.mlp.experts.1.w1.weight": [8, 4],
        "m.0.mlp.gate.weight": [2, 4],
        "m.0.mlp.shared_gate.weight": [1, 4],
        "m.0.mlp.shared.up.weight": [8, 4],
        "m.0.attn.o.weight": [2, 4],  # as many rows, elsewhere
    }
    assert router_names(shapes) == {"m.0.mlp.gate", "m.0.mlp.shared_gate"}
    assert first_odd_tensor(shapes) is None
    assert first_odd_tensor([*shapes, "m.0.mlp.experts.1.w1.bias"]) == "m.0.mlp.experts.1.w1.bias"
    assert first_odd_tensor(["m.0.mlp.experts.gate_up_proj"]) == "m.0.mlp.experts.gate_up_proj"
    assert not mixes_experts(["m.0.mlp.experts", "m.0.shared_experts.up", "m.experts.up.0"])
