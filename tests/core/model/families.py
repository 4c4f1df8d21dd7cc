"""Tiny random decoders of many families, written to disk as a user would have them."""

from pathlib import Path

import torch
import transformers as hf
from transformers import PreTrainedModel

CONTEXT = 64
COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = COMMON | {"num_key_value_heads": 2}
HEADED = GROUPED | {"head_dim": 8}
MIXED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
MIXED["layer_types"] = MIXED["layer_types"][:3]
GPT = {"vocab_size": 96, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 3, "n_head": 4}
OPT = {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1}
OPT.pop("intermediate_size")

FAMILIES = {
    "llama": lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "mistral": lambda: hf.MistralConfig(**HEADED, sliding_window=4),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED, **MIXED, use_sliding_window=True),
    "qwen3": lambda: hf.Qwen3Config(**HEADED, **MIXED, use_sliding_window=True),
    "gemma": lambda: hf.GemmaConfig(**HEADED),
    "gemma2": lambda: hf.Gemma2Config(**HEADED, **MIXED, final_logit_softcapping=5.0),
    "gemma3": lambda: hf.Gemma3TextConfig(**HEADED, **MIXED),
    "phi": lambda: hf.PhiConfig(**COMMON, partial_rotary_factor=0.5),
    "opt": lambda: hf.OPTConfig(**OPT),
    "opt_projected": lambda: hf.OPTConfig(**OPT | {"word_embed_proj_dim": 16}),
    "gpt": lambda: hf.OpenAIGPTConfig(**GPT),  # its blocks return a list
    "gpt2": lambda: hf.GPT2Config(**GPT, bos_token_id=1, eos_token_id=2),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**COMMON),
    "bloom": lambda: hf.BloomConfig(vocab_size=96, hidden_size=32, n_layer=3, n_head=4),
    "falcon": lambda: hf.FalconConfig(**COMMON, alibi=False),
    "falcon_alibi": lambda: hf.FalconConfig(**COMMON, alibi=True, new_decoder_architecture=True),
    "stablelm": lambda: hf.StableLmConfig(**GROUPED, qk_layernorm=True),
}

SSM = {"mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
SSM |= {"mamba_chunk_size": 8}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4}
LATENT |= {"v_head_dim": 8, "num_key_value_heads": 4}

# What is not the same in each of these: what the code must not take for granted.
ODD_FAMILIES = {
    # Modules that read the weight of a convolution, a linear or a bare parameter uncalled.
    "lfm2": lambda: hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention", "conv"]),
    "bamba": lambda: hf.BambaConfig(**GROUPED, **SSM, attn_layer_indices=[1]),
    "granite_hybrid": lambda: hf.GraniteMoeHybridConfig(
        **GROUPED,
        **SSM,
        num_local_experts=0,
        shared_intermediate_size=48,
        layer_types=["mamba", "attention", "mamba"],
    ),
    "mamba": lambda: hf.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=3),
    "mamba2": lambda: hf.Mamba2Config(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        state_size=8,
        chunk_size=8,
    ),
    # A buffer of the block that the model around it computes.
    "falcon_h1": lambda: hf.FalconH1Config(
        **GROUPED, **SSM, mamba_d_ssm=64, ssm_multipliers=[0.5, 2.0, 0.25, 4.0, 0.75]
    ),
    # Norms that take a gate as well.
    "qwen3_5": lambda: hf.Qwen3_5TextConfig(**HEADED, **LINEAR_ATTENTION),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **HEADED, **LINEAR_ATTENTION, num_experts=4, mlp_only_layers=[0, 1, 2]
    ),
    "olmo": lambda: hf.OlmoConfig(**GROUPED),  # norms without weights
    # Weights in three dimensions, or a number of experts in the config, and no experts.
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(
        **COMMON | {"num_key_value_heads": 1, "attention_window_size": 4, "lru_width": 32}
    ),
    "deepseek_v2": lambda: hf.DeepseekV2Config(**COMMON | LATENT, first_k_dense_replace=3),
}

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1}
DEEPSEEK |= {"first_k_dense_replace": 1, "norm_topk_prob": True}

# Mixtures of experts whose weights transformers stacks from stored matrices of each.
MIXTURES = {
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**HEADED, **EXPERTS, num_experts=4),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(
        **GROUPED, **EXPERTS, num_experts=4, shared_expert_intermediate_size=16
    ),
    "olmoe": lambda: hf.OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2),
    "deepseek_v3": lambda: hf.DeepseekV3Config(**COMMON | LATENT | EXPERTS | DEEPSEEK),
    "glm4_moe": lambda: hf.Glm4MoeConfig(**HEADED | EXPERTS | DEEPSEEK),
    "lfm2_moe": lambda: hf.Lfm2MoeConfig(
        **GROUPED,
        **EXPERTS,
        num_experts=4,
        num_dense_layers=1,
        layer_types=["conv", "full_attention", "conv"],
    ),
    "hunyuan_moe": lambda: hf.HunYuanMoEV1Config(**HEADED, num_experts=4, moe_topk=2),
    "phimoe": lambda: hf.PhimoeConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
}


def build(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return a tiny model with every parameter drawn at random, norms and biases too."""
    model = hf.AutoModelForCausalLM.from_config(
        (FAMILIES | ODD_FAMILIES | MIXTURES)[family](), dtype=dtype
    )
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            # Around one, so that gains neither vanish nor look like an initial value.
            parameter.copy_(noise + (parameter.dim() == 1))
    return model.eval()


def save(family: str, folder: Path, dtype: torch.dtype = torch.float32, **options) -> Path:
    """Write a tiny model to a folder and return the folder."""
    build(family, dtype).save_pretrained(folder, **options)
    return folder


def tokens(batch: int = 3, length: int = 12) -> torch.Tensor:
    """Return token ids, none of them a special one."""
    return torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(5))


def left_padding(ids: torch.Tensor) -> torch.Tensor:
    """Return an attention mask that pads row 0 by nothing, row 1 by 2, row 2 by 7."""
    mask = torch.ones_like(ids)
    for row, width in enumerate((0, 2, 7)):
        mask[row, :width] = 0
    return mask
