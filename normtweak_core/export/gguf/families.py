"""The model families that llama.cpp runs from a file of ours, and how each is written; no torch.

llama.cpp rotates pairs of neighbours in the heads of ``llama``, transformers halves of a head; so
the rows of the linears that make queries and keys are put in another order. GPT-NeoX has queries,
keys and values of each head side by side, llama.cpp all queries before all keys. The Conv1D layers
of GPT-2 are linears there.

Source: llama.cpp's ``convert_hf_to_gguf.py`` and ``src/models``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Rows = Literal["pairs", "thirds"]


@dataclass(frozen=True)
class Family:
    """How models of one ``model_type`` are written."""

    architecture: str  # of llama.cpp
    rows: Mapping[str, Rows]  # last part of a module's name: in what order its rows are put
    activations: tuple[str, ...] = ("silu",)
    layer_norm: bool = False  # LayerNorm, not RMSNorm
    rope_types: tuple[str, ...] = ("default",)
    fixed: Mapping[str, bool] = field(default_factory=dict)  # keys that have one value there


_LLAMA = Family("llama", {"q_proj": "pairs", "k_proj": "pairs"}, rope_types=("default", "llama3"))
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Family("qwen2", {}),
    "qwen3": Family("qwen3", {}),
    "phi3": Family("phi3", {}),
    # llama.cpp has but the approximation by tanh, which moves an activation by 5e-4 at most.
    "gpt_neox": Family("gptneox", {"query_key_value": "thirds"}, ("gelu", "gelu_new"), True),
    "gpt2": Family(
        "gpt2",
        {},
        ("gelu_new", "gelu", "gelu_pytorch_tanh"),
        True,
        fixed={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
    ),
}


def family_obstacle(config: Mapping[str, Any]) -> str | None:
    """Return why llama.cpp does not compute what a model does, as a clause; None where it does.

    Args:
        config: config.json of the model; keys that it lacks have the family's defaults.
    """
    family = FAMILIES.get(kind := config.get("model_type"))
    if family is None:
        return f"the model must be one of {', '.join(FAMILIES)}, and it is {kind}"
    act = config.get("hidden_act", config.get("activation_function", family.activations[0]))
    if act not in family.activations:
        return f"its activation must be {' or '.join(family.activations)}, and it is {act}"
    if config.get("mlp_bias", False):
        return "no linear of an MLP may have a bias, and mlp_bias is true"
    for key, wanted in family.fixed.items():
        if config.get(key, wanted) is not wanted:
            return f"{key} must be {str(wanted).lower()}, and it is {str(config[key]).lower()}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = rope.get("rope_type", rope.get("type", "default"))
    if found not in family.rope_types:
        return f"its rotary embedding must be {' or '.join(family.rope_types)}, and it is {found}"
    window, context = config.get("sliding_window"), config.get("max_position_embeddings")
    used = config.get("use_sliding_window", kind != "qwen2" and kind != "qwen3")
    if used and window is not None and context is not None and window < context:
        return f"each token must see all before it, and sliding_window is {window}"
    return None
