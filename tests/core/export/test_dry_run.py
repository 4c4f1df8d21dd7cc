import re

import pytest
import torch
import transformers as hf
from transformers.models.llama import modeling_llama

from normtweak_core.dry_run import dry_run
from normtweak_core.errors import InputError, NonFiniteError
from tests.core.model.families import COMMON, HEADED, build, save

BLOCKS = 3


def rehearse(folder, dtype=torch.float32, num_blocks=BLOCKS, **options):
    return dry_run(folder, dtype, "cpu", num_blocks, **options)


FAMILIES = ["llama", "gemma2", "lfm2", "mamba", "falcon_h1", "qwen3_5", "olmo", "deepseek_v2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_can_be_carried_out_passes(family, tmp_path):
    done = rehearse(save(family, tmp_path))
    uncalled = {"mamba": ["MambaBlock.mixer.dt_proj"]}  # its weight is read without a call
    assert done.uncalled == uncalled.get(family, [])
    # One type of block, or two of which the first one is repeated last.
    assert done.blocks == ([0, 1, 2] if family in ("lfm2", "qwen3_5") else [0, 2])


def test_half_precision_passes_too(tmp_path):
    rehearse(save("falcon_h1", tmp_path), torch.bfloat16)


def test_layers_that_no_reader_of_ternary_models_converts_are_named(tmp_path):
    rehearse(save("gpt2", tmp_path))
    with pytest.raises(InputError, match=r"transformer\.h\.0\.attn\.c_attn is a Conv1D \(GPT-2\)"):
        rehearse(tmp_path, streams=False)


@pytest.mark.parametrize("streams", [True, False])
def test_blocks_that_share_weights_are_told_of(tmp_path, streams):
    sizes = {key: one for key, one in COMMON.items() if key != "num_hidden_layers"}
    kinds = ["hybrid", "mamba", "hybrid"]
    config = hf.Zamba2Config(
        **sizes, num_hidden_layers=3, layers_block_type=kinds, n_mamba_heads=4, num_mem_blocks=1
    )
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    shared = r"each block must have weights of its own; in Zamba2ForCausalLM model\.layers\.2\."
    told(tmp_path, shared, streams=streams)


def test_a_model_that_writes_to_its_weights_is_told_of_before_it_does(tmp_path):
    config = hf.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=3, context_length=64)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    told(tmp_path, r"writes to rwkv\.blocks\.0\.attention\.output\.weight while it runs")


def told(folder, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        rehearse(folder, **options)
    assert str(caught.value).endswith("Choose another model.")


def test_a_model_whose_code_cannot_run_in_pieces_is_told_where_it_ends(tmp_path):
    config = hf.BigBirdConfig(**COMMON, is_decoder=True, block_size=4)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    message = (
        "a model must run block by block; running its blocks apart ends, for BigBirdForCausalLM, "
        "in TypeError: gather(): argument 'input' (position 1) must be Tensor, not NoneType"
    )
    told(tmp_path, re.escape(message))


def test_a_linear_that_is_called_on_two_inputs_is_named(tmp_path, monkeypatch):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.gate_proj(x + 1))

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", forward)
    message = r"called once in its block; mlp\.gate_proj of block 0 \(LlamaDecoderLayer\)"
    told(save("llama", tmp_path), message)


class Memory:
    """What a block has seen of the text, kept beside the hidden state."""

    def __init__(self, monkeypatch):
        self.last = torch.zeros(())
        embed = torch.nn.Embedding.forward
        layer = modeling_llama.LlamaDecoderLayer.forward

        def embedded(module, ids):
            self.last = ids.float().mean()
            return embed(module, ids)

        def forward(module, hidden_states, **kwargs):
            return layer(module, hidden_states, **kwargs) + self.last

        monkeypatch.setattr(torch.nn.Embedding, "forward", embedded)
        monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", forward)


def test_a_block_that_depends_on_the_text_beside_its_input_is_named(tmp_path, monkeypatch):
    folder = save("llama", tmp_path)
    Memory(monkeypatch)
    message = r"block 0 \(LlamaDecoderLayer\), run apart with other text before it differs from its"
    told(folder, message)
    rehearse(folder, streams=False)  # a training takes the model in one piece


def test_a_buffer_that_nothing_computes_is_found(tmp_path, monkeypatch):
    start = modeling_llama.LlamaMLP.__init__
    forward = modeling_llama.LlamaMLP.forward

    def built(self, config):
        start(self, config)
        self.register_buffer("factor", torch.full((1,), 2.0), persistent=False)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "__init__", built)
    monkeypatch.setattr(
        modeling_llama.LlamaMLP,
        "forward",
        lambda self, x: forward(self, x) * (1 + 0 * self.factor.clamp(0, 1)),
    )
    told(save("llama", tmp_path), r"LlamaForCausalLM does not: block 0 .* differs from .* by nan")


def test_blocks_that_the_files_number_otherwise_are_refused(tmp_path):
    message = "they number 4, and LlamaForCausalLM has 3"
    told(save("llama", tmp_path), message, num_blocks=4)


def test_keys_and_values_shared_between_blocks_are_refused(tmp_path):
    config = hf.Gemma3nTextConfig(
        **HEADED,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        num_kv_shared_layers=1,
        activation_sparsity_pattern=[0.0] * 3,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
    )
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    told(tmp_path, r"must be \[windows, tokens, channels\]; that before block 0 \(Gemma3nTextDec")


def test_a_float_model_that_is_not_finite_is_told_apart(tmp_path):
    model = build("llama")
    for block in model.model.layers:
        block.mlp.down_proj.weight.data *= 1e30
        block.mlp.up_proj.weight.data *= 1e30
    model.save_pretrained(tmp_path)
    with pytest.raises(NonFiniteError, match="those of a few ordinary tokens are not: check its"):
        rehearse(tmp_path)


def test_a_linear_whose_tokens_readers_cannot_tell_apart_rounds_no_activations(tmp_path):
    rehearse(save("llama", tmp_path / "llama"), rounds=True)
    folder = save("opt", tmp_path / "opt")
    rehearse(folder)
    with pytest.raises(InputError) as caught:
        rehearse(folder, rounds=True)
    assert caught.value.sentence == (
        "quantization.activation_bits must be null where a linear reads no [windows, tokens, "
        "channels], by which readers tell tokens apart; fc1 of block 0 (OPTDecoderLayer) of "
        "OPTForCausalLM reads [8, 32], which they would round with one scale for a whole batch: "
        "remove it, or choose another model."
    )
