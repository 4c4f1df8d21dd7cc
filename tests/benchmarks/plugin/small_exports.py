"""The small exports of other tools in tests/data/exports, and the float model they are of.

    python -m tests.benchmarks.plugin.small_exports [NAME ...]

Each is of one Llama of random weights (hidden 64, two blocks), made and saved by the tool itself in
an environment of its own (`tests.benchmarks.peers.environments`), with the hashes of the weights
that the tool computes with. Those that are there stay.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from normtweak_core.randomness import generator
from tests.benchmarks.plugin.exports import REPOSITORY, Job, make
from tests.tiny_exports import save_tiny_model, tiny_config

OUT = REPOSITORY / "tests" / "data" / "exports"
KEPT = ("*.safetensors", "config.json", "quantize_config.json", "quantization_config.json")
KEPT += ("dequantized.json", "recipe.yaml")
GROUPS = {"group_size": 32}


def _weights(bits: int, **more: Any) -> dict[str, Any]:
    given = {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group"} | GROUPS
    return {"targets": ["Linear"], "weights": given | more}


def _mixed() -> dict[str, Any]:
    attention = _weights(8, symmetric=True) | {"targets": ["re:.*self_attn.*"]}
    return {
        "attention": attention,
        "mlp": _weights(2, symmetric=True) | {"targets": ["re:.*mlp.*"]},
    }


def _gptq(bits: int, form: str, **more: Any) -> dict[str, Any]:
    settings = {"bits": bits, "format": form, "sym": False, "desc_act": False} | GROUPS
    return {"act_group_aware": False} | settings | more


def _rounded(bits: int, **more: Any) -> dict[str, Any]:
    return {"bits": bits, "sym": False, "iters": 20} | GROUPS | more


EXPORTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gptqmodel-w4-symmetric": ("gptqmodel", _gptq(4, "gptq", sym=True), ""),
    "gptqmodel-w4-v1": ("gptqmodel", _gptq(4, "gptq"), ""),
    "gptqmodel-w2-v1": ("gptqmodel", _gptq(2, "gptq"), ""),
    "gptqmodel-w3-v1": ("gptqmodel", _gptq(3, "gptq"), ""),
    "gptqmodel-w2-v2": ("gptqmodel", _gptq(2, "gptq_v2"), ""),
    "gptqmodel-w3-v2": ("gptqmodel", _gptq(3, "gptq_v2"), ""),
    "gptqmodel-w8-v2": ("gptqmodel", _gptq(8, "gptq_v2"), ""),
    "gptqmodel-w4-act-order": ("gptqmodel", _gptq(4, "gptq_v2", desc_act=True), ""),
    "autoround-w4-symmetric": ("autoround", _rounded(4, sym=True), "auto_round"),
    "autoround-w2": ("autoround", _rounded(2, enable_norm_bias_tuning=True), "auto_round"),
    "autoround-w3-gptq": ("autoround", _rounded(3), "auto_gptq"),
    "autoround-w4-awq": ("autoround", _rounded(4), "auto_awq"),
    "llm-compressor-w4-symmetric": (
        "llm-compressor", {"config_groups": {"group_0": _weights(4, symmetric=True)}}, "",
    ),
    "llm-compressor-w4-static": (
        "llm-compressor", {"config_groups": {"group_0": _weights(4, actorder="static")}}, "",
    ),
    "llm-compressor-w3-channel": (
        "llm-compressor",
        {"config_groups": {"group_0": _weights(3, strategy="channel", group_size=None)}},
        "",
    ),
    "llm-compressor-mixed": ("llm-compressor", {"config_groups": _mixed()}, ""),
    "llm-compressor-awq": (
        "llm-compressor",
        {"modifier": "AWQModifier", "config_groups": {"group_0": _weights(4)}},
        "",
    ),
}  # fmt: skip


def main() -> None:
    """Make what is missing."""
    wanted = sys.argv[1:] or list(EXPORTS)
    source = OUT / "float"
    if not (source / "config.json").is_file():
        save_tiny_model(source, tiny_config("llama", tie_word_embeddings=False))
        model = AutoModelForCausalLM.from_pretrained(source)
        model.to(torch.bfloat16).save_pretrained(source)
    with tempfile.TemporaryDirectory() as scratch:
        tokens = Path(scratch) / "tokens.safetensors"
        ids = torch.randint(256, (16, 64), generator=generator(0, "small exports"))
        save_file({"input_ids": ids}, tokens)
        for name in wanted:
            tool, settings, form = EXPORTS[name]
            out = OUT / name
            try:
                make([Job(tool, str(source), str(tokens), str(out), settings, form)])
            except RuntimeError as error:
                print(f"{name}: {error}", flush=True)
                continue
            for path in [*out.rglob("*")]:
                if path.is_file() and not any(path.match(pattern) for pattern in KEPT):
                    path.unlink()
            size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            print(f"{name}: {size} bytes", flush=True)


if __name__ == "__main__":
    main()
