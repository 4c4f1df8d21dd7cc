"""Ways to break a written export, and two real tokenizers of equal size that do not agree."""

import functools
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from normtweak_core.model.tokenizer_files import tokenizer_files
from tests.tiny_exports import save_tiny_model, tiny_config

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = REPOSITORY / "normtweak_core" / "reference" / "models"
OURS = MODELS / "llama"  # 512 tokens
TEXT = "def area(width, height):\n    return width * height  # of a rectangle\n" * 3
NORM = "model.layers.0.post_attention_layernorm.weight"
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"


def source_model(folder):
    """A tiny Llama with the tokenizer of a reference model."""
    save_tiny_model(folder, tiny_config("llama", vocab_size=512), tokenizer=False)
    return give_tokenizer(folder, OURS)


def give_tokenizer(folder, model):
    for file in tokenizer_files(model):
        shutil.copy(file, folder / file.name)
    return folder


@functools.cache
def other_json():
    """A tokenizer of as many tokens, made from prose where ours was from code."""
    prose = (REPOSITORY / "docs" / "log.md").read_text()
    ours = AutoTokenizer.from_pretrained(OURS)
    other = ours.train_new_from_iterator([prose], len(ours), show_progress=False)
    assert len(other) == len(ours)
    return other.backend_tokenizer.to_str(pretty=True)


def give_other_tokenizer(folder):
    (folder / "tokenizer.json").write_text(other_json())
    return folder


def sample():
    """What a run calibrated with our tokenizer says of it."""
    tokenizer = AutoTokenizer.from_pretrained(OURS)
    ids = tokenizer(TEXT)["input_ids"]
    return {"calibration_sample": {"ids": ids, "text": tokenizer.decode(ids)}}


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def flip_nibble(folder, name=UP):
    """Change one code of a 4-bit linear, whatever the format."""

    def flip(tensors):
        packed = f"{name}.weight_packed"
        tensors[packed if packed in tensors else f"{name}.qweight"][3, 2] ^= 1 << 8

    rewrite(folder, flip)


def shuffle_scales(folder, name=DOWN):
    """Give each row of a linear the scales of another."""

    def shuffle(tensors):
        if f"{name}.weight_scale" in tensors:
            tensors[f"{name}.weight_scale"] = tensors[f"{name}.weight_scale"].roll(1, dims=0)
        else:
            tensors[f"{name}.scales"] = tensors[f"{name}.scales"].roll(1, dims=1)

    rewrite(folder, shuffle)


def torn_tokenizer(folder):
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-20])


def drop_norm(folder):
    rewrite(folder, lambda tensors: tensors.pop(NORM))


def transpose_scales(folder, name=UP):
    """Store the scales of a linear as the other format does: groups and rows change places."""

    def transpose(tensors):
        key = f"{name}.weight_scale" if f"{name}.weight_scale" in tensors else f"{name}.scales"
        shape = tensors[key].shape
        tensors[key] = tensors[key].T.contiguous().view(shape)

    rewrite(folder, transpose)


def other_gains(folder):
    """Give a norm the gains of another one, in another float type."""

    def change(tensors):
        tensors[NORM] = tensors[NORM].double().mul(1.5).float()

    rewrite(folder, change)


def edit_config(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rms_norm_eps": 0.5}))


WEIGHTS = ("file", "model.safetensors")
# What a break is called, and the checks that must notice it, by name and place.
BREAKS = {
    "one flipped nibble": (flip_nibble, [("weight", f"{UP}.weight"), WEIGHTS]),
    "shuffled scales": (
        shuffle_scales,
        [("scales", DOWN), ("weight", f"{DOWN}.weight"), WEIGHTS],
    ),
    "transposed scales": (
        transpose_scales,
        [("scales", UP), ("weight", f"{UP}.weight"), WEIGHTS],
    ),
    "a norm that is gone": (drop_norm, [("loading", NORM), ("weight", NORM), WEIGHTS]),
    "another float type and gain": (other_gains, [("weight", NORM), WEIGHTS]),
    "an edited config": (edit_config, [("file", "config.json")]),
    "another tokenizer": (
        give_other_tokenizer,
        [
            ("file", "tokenizer.json"),
            ("tokenizer", "ids"),
            ("tokenizer", "decoded"),
            ("tokenizer", "marked_ids"),
            ("tokenizer", "unmarked"),
            ("tokenizer", "vocabulary_sha256"),
            ("tokenizer", "calibration text"),
        ],
    ),
    "a torn tokenizer": (torn_tokenizer, [("file", "tokenizer.json"), ("tokenizer", "loading")]),
}
# The tokenizer of another model that was already there when the export was written.
WRONG_BEFORE = [("tokenizer", "calibration text")]


def named(report):
    """Which checks found what, but for what follows from changed weights in the logits."""
    return [
        (problem["what"], problem["name"])
        for problem in report["problems"]
        if problem["what"] not in ("logits", "argmax")
    ]
