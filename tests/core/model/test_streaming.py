import functools
import gc

import pytest
import torch
from families import FAMILIES, MIXTURES, ODD_FAMILIES, left_padding, save, tokens
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from normtweak_core import on_demand
from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.model.streaming import StreamedModel


def from_pretrained(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def outputs_of_blocks(model, streamed, **inputs):
    """What each block of a whole model receives and returns, and its logits: by hooks."""
    received, returned = [], []
    handles = []
    for index in range(streamed.num_blocks):
        block = model.get_submodule(streamed.block_prefix(index))

        def keep(_, args, kwargs, output):
            received.append(args[0] if args else kwargs["hidden_states"])
            returned.append(output[0] if isinstance(output, tuple | list) else output)

        handles.append(block.register_forward_hook(keep, with_kwargs=True))
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return received, returned, logits


def assert_streams_exactly(folder, dtype=torch.float32, attention_mask=None):
    model, streamed = from_pretrained(folder, dtype), StreamedModel(folder, dtype, "cpu")
    inputs = {"input_ids": tokens(), "attention_mask": attention_mask}
    received, returned, logits = outputs_of_blocks(model, streamed, **inputs)
    assert len(returned) == streamed.num_blocks
    with torch.no_grad():
        hidden, calls = streamed.embed(**inputs)
        assert torch.equal(hidden, received[0])
        for index, call in enumerate(calls):
            hidden = streamed.run_block(streamed.load_block(index), hidden, call)
            assert torch.equal(hidden, returned[index]), index
        assert torch.isfinite(hidden).all()
        assert torch.equal(streamed.head(hidden), logits)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that returns the folder of a tiny model, written once; no test may change it."""
    return functools.cache(lambda family: save(family, tmp_path_factory.mktemp(family)))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", [*FAMILIES, *ODD_FAMILIES, *MIXTURES])
def test_block_by_block_equals_the_models_own_forward_exactly(family, padded, saved):
    mask = left_padding(tokens()) if padded else None
    assert_streams_exactly(saved(family), attention_mask=mask)


@pytest.mark.parametrize("family", [*FAMILIES, *ODD_FAMILIES, *MIXTURES])
def test_an_embedding_or_head_that_is_read_when_it_runs_changes_nothing(family, saved, monkeypatch):
    monkeypatch.setattr(on_demand, "KEPT_WEIGHT", 0)
    folder = saved(family)
    assert_streams_exactly(folder)
    streamed = StreamedModel(folder, torch.float32, "cpu")
    streamed.logits(tokens())
    for end in (streamed.model.get_input_embeddings(), streamed.model.get_output_embeddings()):
        assert end.weight.is_meta


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_from_pretrained_exactly(family, dtype, tmp_path):
    assert_streams_exactly(save(family, tmp_path), dtype, left_padding(tokens()))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mixtral", "qwen3_moe"])
def test_a_sharded_checkpoint_streams_the_same(family, tmp_path):
    save(family, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_streams_exactly(tmp_path)


@pytest.mark.parametrize("family", [*FAMILIES, *ODD_FAMILIES, *MIXTURES])
def test_every_parameter_and_buffer_equals_that_of_from_pretrained(family, saved):
    model = from_pretrained(saved(family), torch.bfloat16)
    streamed = StreamedModel(saved(family), torch.bfloat16, "cpu")
    seen = 0
    for index in range(streamed.num_blocks):
        block, own = streamed.load_block(index), model.get_submodule(streamed.block_prefix(index))
        for kind in ("named_parameters", "named_buffers"):
            expected = dict(getattr(own, kind)())
            found = dict(getattr(block, kind)())
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                assert found[name].dtype == tensor.dtype, name
                assert torch.equal(found[name], tensor), name
                seen += 1
    assert seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_that_a_family_keeps_in_float32_are_kept_so(dtype, tmp_path, monkeypatch):
    save("llama", tmp_path)
    for key, name in (("", "mlp.up_proj"), ("_strict", "post_attention_layernorm")):
        monkeypatch.setattr(LlamaForCausalLM, f"_keep_in_fp32_modules{key}", [name])
    expected = from_pretrained(tmp_path, dtype).model.layers[1].state_dict()
    found = StreamedModel(tmp_path, dtype, "cpu").load_block(1).state_dict()
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert found["post_attention_layernorm.weight"].dtype == torch.float32


def test_rotary_frequencies_stay_in_float32_when_the_model_is_not(tmp_path):
    streamed = StreamedModel(save("llama", tmp_path), torch.bfloat16, "cpu")
    frequencies = streamed._model.model.rotary_emb.inv_freq
    expected = 1.0 / 10000.0 ** (torch.arange(0, 8, 2, dtype=torch.float32) / 8)
    assert frequencies.dtype == torch.float32
    assert torch.equal(frequencies, expected)


def test_reusing_the_first_blocks_arguments_would_be_wrong(tmp_path):
    streamed = StreamedModel(save("gemma2", tmp_path), torch.float32, "cpu")
    with torch.no_grad():
        hidden, calls = streamed.embed(tokens())
        block = streamed.load_block(1)
        own = streamed.run_block(block, hidden, calls[1])
        borrowed = streamed.run_block(block, hidden, calls[0])
    assert (own - borrowed).abs().max() > 0.1


def materialised_blocks(streamed):
    blocks = streamed._model.get_submodule(streamed._prefix)
    return [name for name, tensor in blocks.named_parameters() if not tensor.is_meta]


def live_bytes():
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and not thing.is_meta:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def test_only_the_block_at_hand_is_in_memory(tmp_path):
    save("gpt2", tmp_path)
    streamed = StreamedModel(tmp_path, torch.float32, "cpu")
    ids = tokens()
    with torch.no_grad():
        hidden, calls = streamed.embed(ids)
    before = live_bytes()
    for index, call in enumerate(calls):
        assert materialised_blocks(streamed) == []
        block = streamed.load_block(index)
        parts = [*block.parameters(), *block.buffers()]
        own = sum(part.untyped_storage().nbytes() for part in parts)
        assert own == sum(part.numel() * part.element_size() for part in parts)
        assert live_bytes() - before == own
        with torch.no_grad():
            hidden.copy_(streamed.run_block(block, hidden, call))
        del block, parts
    assert live_bytes() == before
    assert materialised_blocks(streamed) == []


def test_a_loaded_block_is_fresh_frozen_and_in_eval_mode(tmp_path):
    streamed = StreamedModel(save("llama", tmp_path), torch.float32, "cpu")
    first = streamed.load_block(0)
    before = first.mlp.up_proj.weight.clone()
    first.mlp.up_proj.weight.zero_()
    second = streamed.load_block(0)
    assert torch.equal(second.mlp.up_proj.weight, before)
    assert not any(part.training for part in second.modules())
    assert not any(parameter.requires_grad for parameter in second.parameters())


def test_a_loaded_block_does_not_hang_on_its_file(tmp_path):
    path = save("llama", tmp_path) / "model.safetensors"
    block = StreamedModel(tmp_path, torch.float32, "cpu").load_block(0)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    with path.open("r+b") as file:  # in place: the same inode that was mapped
        file.write(b"\0" * path.stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_loading_leaves_the_global_generator_alone(tmp_path):
    save("gpt2", tmp_path)
    before = torch.get_rng_state()
    streamed = StreamedModel(tmp_path, torch.float32, "cpu")
    streamed.embed(tokens())
    streamed.load_block(0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", ["llama", "bloom", "gemma2"])
def test_gradients_reach_the_norms_of_a_block_through_the_head(family, tmp_path):
    model = from_pretrained(save(family, tmp_path)).requires_grad_(False)
    streamed = StreamedModel(tmp_path, torch.float32, "cpu")
    last = streamed.num_blocks - 1
    hidden, calls = streamed.embed(tokens())
    for index in range(last):
        hidden = streamed.run_block(streamed.load_block(index), hidden, calls[index])
    block = streamed.load_block(last)
    name = "input_layernorm.weight"
    gain = block.get_parameter(name).requires_grad_(True)
    logits = streamed.head(streamed.run_block(block, hidden, calls[last]))
    logits.logsumexp(-1).sum().backward()

    expected = model.get_parameter(f"{streamed.block_prefix(last)}.{name}").requires_grad_(True)
    model(tokens(), use_cache=False).logits.logsumexp(-1).sum().backward()
    assert torch.equal(gain.grad, expected.grad)
    assert gain.grad.abs().max() > 0


def test_the_head_can_be_asked_before_anything_is_embedded(tmp_path):
    model = from_pretrained(save("bloom", tmp_path))
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.lm_head(model.transformer.ln_f(hidden))
        logits = StreamedModel(tmp_path, torch.float32, "cpu").head(hidden)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    ("family", "drop", "add"), [("gpt2", "transformer.", ""), ("opt", "model.", "")]
)
def test_names_without_the_base_models_prefix_are_found(family, drop, add, tmp_path):
    weights = load_file(save(family, tmp_path) / "model.safetensors")
    renamed = {name.removeprefix(drop): tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_streams_exactly(tmp_path)


def test_blocks_are_called_as_the_checkpoint_calls_them(tmp_path):
    streamed = StreamedModel(save("gpt_neox", tmp_path), torch.float32, "cpu")
    assert streamed.num_blocks == 3
    assert streamed.block_prefix(2) == "gpt_neox.layers.2"
    assert streamed.config.hidden_size == 32
    with pytest.raises(IndexError):
        streamed.block_prefix(3)


def rewrite(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_when_its_block_is_loaded(value, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(save("llama", tmp_path), lambda weights: weights[name][3, 4].fill_(value))
    streamed = StreamedModel(tmp_path, torch.float32, "cpu")
    streamed.load_block(0)
    with pytest.raises(NonFiniteError, match=f"{name} has NaN or infinite values as stored"):
        streamed.load_block(1)


def test_a_weight_outside_the_range_of_the_dtype_is_named(tmp_path):
    name = "model.norm.weight"
    rewrite(save("llama", tmp_path), lambda weights: weights[name].fill_(1e30))
    StreamedModel(tmp_path, torch.bfloat16, "cpu")
    with pytest.raises(NonFiniteError, match=f"{name} .* once cast to torch.float16"):
        StreamedModel(tmp_path, torch.float16, "cpu")


def test_an_absent_weight_is_an_error_and_not_a_random_number(tmp_path):
    rewrite(
        save("llama", tmp_path), lambda weights: weights.pop("model.layers.2.mlp.up_proj.weight")
    )
    with pytest.raises(InputError, match=r"1 are absent, model\.layers\.2\.mlp\.up_proj\.weight"):
        StreamedModel(tmp_path, torch.float32, "cpu")


def test_a_weight_of_another_shape_is_named(tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(
        save("llama", tmp_path), lambda weights: weights.update({name: weights[name][1:].clone()})
    )
    streamed = StreamedModel(tmp_path, torch.float32, "cpu")
    with pytest.raises(InputError, match=rf"{name} must have the shape \[48, 32\].*\[47, 32\]"):
        streamed.load_block(0)


def test_a_model_that_works_between_its_blocks_is_refused(tmp_path, monkeypatch):
    streamed = StreamedModel(save("llama", tmp_path), torch.float32, "cpu")
    stand = streamed._model.model.layers[1].forward
    streamed._model.model.layers[1].forward = lambda h, *a, **k: stand(h + 1, *a, **k)
    with pytest.raises(InputError, match=r"does something else at model\.layers\.1"):
        streamed.embed(tokens())
