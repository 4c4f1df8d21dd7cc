"""What llama.cpp's ``bitnet`` architecture cannot hold, seen from config.json and shapes; no torch.

That architecture is a Llama with two more norms a block, before the output projections of attention
and MLP. One RMSNorm follows the residual stream for all the linears that read it, the activation is
SiLU, the head is the embedding, nothing has a bias, and every head is hidden_size / heads wide.

Source: llama.cpp ``src/models/bitnet.cpp``, and what it computed with files like ours.
"""

from collections.abc import Mapping
from typing import Any

from normtweak_core.errors import InputError
from normtweak_core.export.formats.checks import LinearShape

TYPE = "TQ2_0"
BLOCK = 256  # weights of a row that share one scale


def check_gguf_exportable(config: Mapping[str, Any], linears: Mapping[str, LinearShape]) -> None:
    """Accept a ternary recipe whose result can be written as GGUF.

    What only training decides is looked at when the file is written: the linears that read one
    tensor must have the same gains.

    Args:
        config: config.json of the float model.
        linears: The linears of its blocks, by name.

    Raises:
        InputError: The model is not of the architecture that the format has for ternary weights.
    """
    obstacle = gguf_obstacle(config, linears)
    if obstacle is not None:
        raise gguf_error(obstacle)


def gguf_error(obstacle: str) -> InputError:
    """Return the error for a model that GGUF does not hold."""
    return InputError(
        f"export.format: gguf needs a model of llama.cpp's bitnet architecture; {obstacle}. "
        "Use bitnet, which writes the file where it can."
    )


def gguf_obstacle(config: Mapping[str, Any], linears: Mapping[str, LinearShape]) -> str | None:
    """Return why a model cannot be GGUF, from what is known before any work; None if nothing is.

    Args:
        config: config.json of the model; keys that it lacks have Llama's defaults.
        linears: The linears of its blocks, by name.
    """
    if config.get("model_type") != "llama":
        return f"it must be shaped like Llama, and the model is {config.get('model_type')}"
    if config.get("hidden_act", "silu") != "silu":
        return f"its activation must be silu, and it is {config['hidden_act']}"
    if not config.get("tie_word_embeddings", False):
        return "the output head must be the embedding, and the model has a head of its own"
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key, False):
            return f"no linear may have a bias, and {key} is true"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        return f"its rotary embedding must be the plain one, and it is {kind}"
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    if head * heads != width:
        return f"its {heads} heads must be {width / heads:g} wide, and they are {head}"
    for name, shape in linears.items():
        if shape.in_features % BLOCK:
            return (
                f"every input width must be a multiple of {BLOCK}, the block of {TYPE}, and that "
                f"of {name} is {shape.in_features}"
            )
    return None
