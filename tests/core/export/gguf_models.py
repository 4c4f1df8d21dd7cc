"""Tiny ternary models that a GGUF file can hold, and how they are exported."""

import dataclasses

import torch

from normtweak_core.export.config import ExportConfig
from normtweak_core.export.writer import write_ternary_export
from tests.tiny_exports import tiny_config

EPS = 1e-6
FILE = "gguf/model-TQ2_0.gguf"
Q0 = "model.layers.0.self_attn.q_proj"
SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def wide(**changes):
    changes = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 2} | changes
    return tiny_config("llama", **changes)


def share_gains(layers):
    """Give the linears that read the same tensor the gain of the first of them."""
    shared = dict(layers)
    for name in layers:
        block, _, last = name.rpartition(".")
        for group in SHARED:
            if last in group:
                gain = layers[f"{block}.{group[0]}"].gain
                shared[name] = dataclasses.replace(layers[name], gain=gain)
    return shared


def norms(value=1.0):
    """Block norms with one gain, some of its signs turned."""
    gain = torch.full((256,), value)
    gain[::7] *= -1
    kinds = ("input_layernorm", "post_attention_layernorm")
    return {f"model.layers.{i}.{kind}.weight": gain for i in range(2) for kind in kinds}


def write(out, source, layers, replaced=None, form="bitnet", dtype="float32", eps=EPS):
    config = ExportConfig(format=form, dtype=dtype)
    replaced = norms() if replaced is None else replaced
    return write_ternary_export(out, source, layers, replaced, config, rms_norm_eps=eps)
