"""Tiny random models on disk, and every linear of their blocks rounded to nearest."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

from normtweak_core.quantization.grid import round_scale
from normtweak_core.quantization.weight import QuantizedWeight
from normtweak_core.ternary.weight import ternary_linear


def tiny_config(family, **changes):
    shared = {"vocab_size": 256, "max_position_embeddings": 64, "num_hidden_layers": 2}
    if family == "llama":
        shared |= {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        }
        return LlamaConfig(**shared | changes)
    if family == "opt":  # its embedding is narrower: two float linears around the blocks
        shared |= {"hidden_size": 64, "ffn_dim": 128, "num_attention_heads": 4}
        return OPTConfig(**shared | {"word_embed_proj_dim": 32} | changes)
    shared |= {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "tie_word_embeddings": False,
    }
    return GPTNeoXConfig(**shared | changes)


def save_tiny_model(folder, config, seed=0, tokenizer=True):
    """Write a random float32 model, with weights large enough that logits differ clearly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            parameter.data = 1 + 0.1 * noise if "norm.weight" in name else 0.2 * noise
    model.save_pretrained(folder)
    if tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer():
    """A tokenizer of 256 tokens, one for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=byte_level)


def round_to_nearest(weight, bits, group_size, symmetric, dtype):
    """Min-max grid per group and the nearest code."""
    groups = weight.float().reshape(weight.shape[0], -1, group_size or weight.shape[1])
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    top = 2**bits - 1
    if symmetric:
        scales = round_scale(2 * torch.maximum(-low, high) / top, dtype)
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        scales = round_scale((high - low) / top, dtype)
        zeros = torch.round(-low / scales).clamp(0, top)
    codes = torch.round(groups / scales[..., None]) + zeros[..., None]
    codes = codes.clamp(0, top).reshape(weight.shape).to(torch.uint8)
    return QuantizedWeight(codes, scales, zeros.to(torch.uint8), bits, group_size, symmetric)


def quantize_all(folder, bits, group_size, symmetric, dtype=torch.float16):
    """Every linear of the blocks of the model in ``folder``, rounded to nearest."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = {}
    for name, module in model.named_modules():
        if not any(part.isdigit() for part in name.split(".")):
            continue
        if isinstance(module, torch.nn.Linear | Conv1D):
            weight = module.weight.data
            weight = weight.T.contiguous() if isinstance(module, Conv1D) else weight
            layers[name] = round_to_nearest(weight, bits, group_size, symmetric, dtype)
    return layers


def ternary_all(folder, dtype=torch.float32, gains=True, seed=0):
    """Every linear of the blocks of the model in ``folder`` as a ternary one, with random gains."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and any(p.isdigit() for p in name.split(".")):
            gain = torch.randn(module.in_features, generator=generator).exp() if gains else None
            bias = None if module.bias is None else module.bias.data
            layers[name] = ternary_linear(module.weight.data, gain, bias, dtype)
    return layers


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))
