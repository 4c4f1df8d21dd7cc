"""A tiny Llama on disk, written without torch, a recipe for it, and the variables of a command."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy
import yaml
from safetensors.numpy import load_file, save_file

from tasks.engine.environment import default_variables

HIDDEN, INNER, VOCABULARY, CONTEXT = 64, 128, 96, 256
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def write_model(folder: Path, seed: int = 0, blocks: int = 2, inner: int = INNER, **config) -> Path:
    """Write config, weights and a tokenizer; `config` adds or changes keys."""
    random = numpy.random.default_rng(seed)

    def draw(*shape):
        return random.standard_normal(shape, dtype=numpy.float32) * 0.1

    tensors = {"model.embed_tokens.weight": draw(VOCABULARY, HIDDEN), "model.norm.weight": draw(64)}
    for index in range(blocks):
        prefix = f"model.layers.{index}"
        for name, shape in SHAPES.items():
            sides = [inner if side == INNER else side for side in shape]
            tensors[f"{prefix}.{name}.weight"] = draw(*sides)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = 1 + draw(HIDDEN)
    folder.mkdir(parents=True, exist_ok=True)
    settings = CONFIG | {"num_hidden_layers": blocks, "intermediate_size": inner} | config
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text('{"unk_token": "w0"}')
    return folder


def write_base(folder: Path, model: Path, group: int = 64, **quantization) -> Path:
    """Write a model as others quantize it: 2 bits, rounded to nearest, in the layout gptq_v2."""
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = (1.01 * weight).astype(numpy.float16)  # no norm is the float model's
            continue
        linear, (rows, columns) = name.removesuffix(".weight"), weight.shape
        groups = weight.reshape(rows, -1, group)
        low, high = groups.min(-1), groups.max(-1)
        scales = ((high - low) / 3).astype(numpy.float16).astype(numpy.float32)
        zeros = numpy.round(-low / scales).clip(0, 3)
        codes = (numpy.round(groups / scales[..., None]) + zeros[..., None]).clip(0, 3)
        tensors |= {
            f"{linear}.qweight": _words(codes.reshape(rows, columns).T),
            f"{linear}.qzeros": _words(zeros).T.copy(),
            f"{linear}.scales": scales.T.astype(numpy.float16).copy(),
            f"{linear}.g_idx": (numpy.arange(columns) // group).astype(numpy.int32),
        }
    said = {"quant_method": "gptq", "bits": 2, "group_size": group, "sym": False}
    said |= {"checkpoint_format": "gptq_v2"} | quantization
    folder.mkdir()
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _words(codes: numpy.ndarray) -> numpy.ndarray:
    """Return 2-bit codes, 16 of the first dimension in a word."""
    sixteens = codes.astype(numpy.uint32).reshape(-1, 16, codes.shape[1])
    shifts = 2 * numpy.arange(16, dtype=numpy.uint32)[:, None]
    return (sixteens << shifts).sum(axis=1, dtype=numpy.uint32).view(numpy.int32)


def recipe_values(folder: Path) -> dict:
    """Return a valid recipe for what `write_project` wrote, as plain values."""
    return {
        "name": "tiny",
        "model": {"source": str(folder / "model")},
        "calibration": {
            "source": "text", "path": str(folder / "calibration.txt"), "samples": 8, "length": 16,
        },
        "evaluation": {"perplexity": {"path": str(folder / "evaluation.txt")}},
    }  # fmt: skip


def ablation_values(folder: Path) -> dict:
    """Return a valid ablation of what `write_project` wrote: two studies."""
    left_out = {"calibration": [], "target": [], "schedule": [], "iterations": [], "bits": []}
    studies = left_out | {"loss": ["channel", "mse"], "stage": ["rtn", "gptq"]}
    return recipe_values(folder) | {
        "name": "tiny-ablation",
        "final_tune": {"enabled": False},
        "ablation": {"studies": studies},
    }


def ternary_values(folder: Path, **ternary) -> dict:
    """Return a valid ternary recipe for what `write_project` wrote; `ternary` adds keys."""
    values = recipe_values(folder)
    settings = {"steps": 24, "batch": 2, "lr": 3e-3, "save_every": 6}
    return {
        "name": "tiny-ternary",
        "model": values["model"],
        "ternary": settings | {"data": values["calibration"]} | ternary,
        "evaluation": values["evaluation"],
    }


def write_project(folder: Path) -> Path:
    """Write a model, two texts and a recipe; return the recipe."""
    write_base(folder / "base", write_model(folder / "model"))
    (folder / "calibration.txt").write_text("one text to calibrate with\n" * 40)
    (folder / "evaluation.txt").write_text("another to measure on\n" * 40)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values(folder)))
    return recipe


@contextlib.contextmanager
def variables_of(root: Path) -> Iterator[Path]:
    """Set NORMTWEAK_HOME; what a command sets inside is taken back afterwards."""
    before = dict(os.environ)
    for name in default_variables(root):
        os.environ.pop(name, None)
    os.environ["NORMTWEAK_HOME"] = str(root)
    try:
        yield root
    finally:
        os.environ.clear()
        os.environ.update(before)
