"""Tiny random models of many families, by config: what `make families` takes the whole way."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers as hf

from tests.core.vision_models import write_vision_model
from tests.tiny_exports import byte_tokenizer

Configs = Mapping[str, Callable[[], hf.PreTrainedConfig]]
Write = Callable[[Path], Path]  # writes a model to a folder and returns the folder

VOCABULARY, CONTEXT, BLOCKS = 256, 64, 2
SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "num_hidden_layers": BLOCKS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
HEADED = GROUPED | {"head_dim": 32}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GPT = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 64, "n_layer": 2, "n_head": 4}
OPT = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32}
LATENT |= {"v_head_dim": 32, "num_key_value_heads": 4}
MAMBA = {"mamba_d_state": 16, "mamba_n_heads": 16, "mamba_d_head": 8, "mamba_n_groups": 1}
MAMBA |= {"mamba_chunk_size": 8}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}

DENSE: Configs = {
    "Llama": lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "Mistral": lambda: hf.MistralConfig(**HEADED, sliding_window=None),
    "Qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "Qwen3": lambda: hf.Qwen3Config(**HEADED),
    "Gemma 2": lambda: hf.Gemma2Config(**HEADED, **SLIDING),
    "Gemma 3 text": lambda: hf.Gemma3TextConfig(**HEADED, **SLIDING),
    "Phi": lambda: hf.PhiConfig(**SIZES),
    "Phi-3": lambda: hf.Phi3Config(**GROUPED),
    "OPT": lambda: hf.OPTConfig(**OPT, ffn_dim=128, word_embed_proj_dim=64),
    "BLOOM": lambda: hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4),
    "Falcon": lambda: hf.FalconConfig(**SIZES, alibi=False),
    "StableLM": lambda: hf.StableLmConfig(**GROUPED),
    "GPT-NeoX": lambda: hf.GPTNeoXConfig(**SIZES),
    "GPT-J": lambda: hf.GPTJConfig(**GPT, **ENDS, rotary_dim=8),
    "GPT-Neo": lambda: hf.GPTNeoConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        **ENDS,
    ),
    "GPTBigCode": lambda: hf.GPTBigCodeConfig(**GPT, **ENDS),
    "MPT": lambda: hf.MptConfig(
        vocab_size=VOCABULARY, d_model=64, n_layers=2, n_heads=4, max_seq_len=CONTEXT
    ),
    "CodeGen": lambda: hf.CodeGenConfig(**GPT, **ENDS, rotary_dim=8, n_ctx=CONTEXT),
    "OLMo 2": lambda: hf.Olmo2Config(**GROUPED),
    "Granite": lambda: hf.GraniteConfig(**GROUPED),
    "Cohere": lambda: hf.CohereConfig(**GROUPED),
    "Cohere 2": lambda: hf.Cohere2Config(**GROUPED, **SLIDING),
    "Nemotron": lambda: hf.NemotronConfig(**GROUPED),
    "ERNIE 4.5": lambda: hf.Ernie4_5Config(**HEADED),
    "XGLM": lambda: hf.XGLMConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        d_model=64,
        ffn_dim=128,
        num_layers=2,
        attention_heads=4,
        **ENDS,
    ),
    "SmolLM3": lambda: hf.SmolLM3Config(**GROUPED),
    "GLM-4": lambda: hf.Glm4Config(**HEADED),
    "StarCoder2": lambda: hf.Starcoder2Config(**GROUPED),
    "EXAONE 4": lambda: hf.Exaone4Config(**GROUPED, **SLIDING),
    "MiniCPM3": lambda: hf.MiniCPM3Config(**SIZES | LATENT, dim_model_base=64, scale_emb=1),
}

CONV1D: Configs = {
    "GPT-2": lambda: hf.GPT2Config(**GPT, **ENDS),
    "GPT": lambda: hf.OpenAIGPTConfig(**GPT),
}

MIXTURES: Configs = {
    "Mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "Qwen3-MoE": lambda: hf.Qwen3MoeConfig(**HEADED, **EXPERTS, num_experts=4),
    "OLMoE": lambda: hf.OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2),
    "DeepSeek-V3": lambda: hf.DeepseekV3Config(
        **SIZES | LATENT | EXPERTS,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
        norm_topk_prob=True,
    ),
}

HYBRIDS: Configs = {
    "Mamba": lambda: hf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, time_step_rank=16, **ENDS
    ),
    "Mamba 2": lambda: hf.Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_heads=16,
        head_dim=8,
        n_groups=1,
        state_size=16,
        chunk_size=8,
        **ENDS,
    ),
    "FalconMamba": lambda: hf.FalconMambaConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, time_step_rank=16, **ENDS
    ),
    "Bamba": lambda: hf.BambaConfig(**GROUPED, **MAMBA, attn_layer_indices=[1]),
    "Falcon-H1": lambda: hf.FalconH1Config(**GROUPED, **MAMBA, mamba_d_ssm=128),
    "Granite hybrid": lambda: hf.GraniteMoeHybridConfig(
        **GROUPED,
        **MAMBA,
        num_local_experts=0,
        shared_intermediate_size=128,
        layer_types=["mamba", "attention"],
    ),
    "Zamba 2": lambda: hf.Zamba2Config(
        **SIZES | {"num_hidden_layers": 3},
        mamba_d_state=16,
        n_mamba_heads=16,
        mamba_ngroups=1,
        chunk_size=8,
        layers_block_type=["hybrid", "mamba", "hybrid"],
        num_mem_blocks=1,
    ),
    "Jamba": lambda: hf.JambaConfig(
        **GROUPED,
        mamba_d_state=16,
        mamba_dt_rank=16,
        num_experts=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
    ),
    "Nemotron-H": lambda: hf.NemotronHConfig(
        **HEADED,
        layers_block_type=["mamba", "attention"],
        mamba_num_heads=16,
        mamba_head_dim=8,
        ssm_state_size=16,
        n_groups=1,
        chunk_size=8,
    ),
    "LFM2": lambda: hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
    "Qwen3-Next": lambda: hf.Qwen3NextConfig(
        **HEADED, **LINEAR_ATTENTION, num_experts=4, mlp_only_layers=[0, 1]
    ),
    "Qwen3.5": lambda: hf.Qwen3_5TextConfig(**HEADED, **LINEAR_ATTENTION),
    "RecurrentGemma": lambda: hf.RecurrentGemmaConfig(
        **SIZES | {"num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 64},
        attention_window_size=8,
    ),
    "RWKV": lambda: hf.RwkvConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        attention_hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        context_length=CONTEXT,
        **ENDS,
    ),
}

IMAGES = {
    "LLaVA": "llava",
    "Qwen2.5-VL": "qwen2_5_vl",
    "Gemma 3": "gemma3",
    "Mistral 3": "mistral3",
}


def save(config: hf.PreTrainedConfig, folder: Path) -> Path:
    """Write a model with every parameter drawn at random, and a tokenizer of bytes."""
    generator = torch.Generator().manual_seed(11)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            # Around one, so that gains neither vanish nor look like an initial value.
            parameter.copy_(noise + (parameter.dim() == 1))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def _writers(configs: Configs) -> dict[str, Write]:
    def write(config: Callable[[], hf.PreTrainedConfig], folder: Path) -> Path:
        return save(config(), folder)

    return {name: functools.partial(write, config) for name, config in configs.items()}


GROUPS: Mapping[str, Mapping[str, Write]] = {
    "dense": _writers(DENSE),
    "Conv1D": _writers(CONV1D),
    "mixtures": _writers(MIXTURES),
    "hybrids": _writers(HYBRIDS),
    "images": {
        name: functools.partial(write_vision_model, family=kind) for name, kind in IMAGES.items()
    },
}
