"""What a GGUF file says of a model beside its tensors, by the keys of llama.cpp.

Source: llama.cpp's ``convert_hf_to_gguf.py``.
"""

import math

import gguf
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig


def add_settings(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the sizes of a model of one of the families, and how it rotates and normalizes."""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    if writer.arch == "gpt2":  # whose positions are embedded
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    rope = config.rope_parameters
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if writer.arch == "gptneox":
        writer.add_parallel_residual(config.use_parallel_residual)
        writer.add_layer_norm_eps(config.layer_norm_eps)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if writer.arch == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.max_position_embeddings)
        writer.add_sliding_window(0)


def rope_factors(config: PreTrainedConfig) -> Float[Tensor, " half"] | None:
    """Return what llama.cpp divides the frequencies of a rotary embedding by; None: by one.

    Source: Llama 3.1, as in transformers' ``_compute_llama3_parameters``: long waves are slowed
        down by the factor, short ones are not, and those between in part.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "llama3":
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequency = rope["rope_theta"] ** -(torch.arange(0, head, 2, dtype=torch.float32) / head)
    waves = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((waves - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / rope["factor"] + smooth)
