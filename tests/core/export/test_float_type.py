"""The float type of an export is one in which a stock reader's arithmetic holds the model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from normtweak_core import CalibrationConfig, quantize
from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.float_type import (
    choose_export_dtype,
    resolve_export_dtype,
)
from normtweak_core.export.formats.checks import FloatTypeError
from normtweak_core.export.verification.probe import probe_rows
from tests.core.model.families import save, tokens
from tests.tiny_exports import save_tiny_model, tiny_config


def edited(folder, edit):
    """Return the folder after `edit` has changed its tensors in place."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def begin(name, size):
    """Give token 1, which begins a document, one huge number in the residual stream."""

    def edit(tensors):
        tensors[name][1, 5] = size

    return edit


@pytest.mark.parametrize(
    ("asked", "value", "expected"),
    [
        ("auto", -6e4, torch.float16),
        ("auto", -7e4, torch.bfloat16),
        ("float16", 1.0, torch.float16),
        ("bfloat16", 1.0, torch.bfloat16),
        ("float32", 1e30, torch.float32),
    ],
)
def test_weights_alone_suggest_float16_wherever_they_fit(tmp_path, asked, value, expected):
    folder = edited(save("llama", tmp_path), begin("model.embed_tokens.weight", value))
    assert resolve_export_dtype(ExportConfig(dtype=asked), folder) == expected


@pytest.mark.parametrize(
    ("form", "advice"),
    [
        ("auto", "set it to bfloat16 or float32, which hold it"),
        (
            "gptq",
            "gptq is read in float16 alone: set export.format to auto, with bfloat16 or float",
        ),
    ],
)
def test_weights_beyond_float16_are_named_with_what_holds_them(tmp_path, form, advice):
    folder = edited(save("llama", tmp_path), begin("model.embed_tokens.weight", 7e4))
    told = (
        "export.dtype must hold the model as its readers compute it; float16 does not: "
        f"model.embed_tokens.weight reaches 70000, beyond 65504: {advice}"
    )
    with pytest.raises(InputError, match=told):
        resolve_export_dtype(ExportConfig(dtype="float16", format=form), folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value):
    folder = edited(save("llama", tmp_path), begin("model.embed_tokens.weight", value))
    with pytest.raises(NonFiniteError, match=r"finite; model\.embed_tokens\.weight is not"):
        resolve_export_dtype(ExportConfig(), folder)


@pytest.mark.parametrize("value", [-1e9, float("-inf")])
@pytest.mark.parametrize("name", ["masked_bias", "rotary_emb.inv_freq"])
def test_what_a_checkpoint_holds_beside_the_weights_decides_nothing(tmp_path, name, value):
    def keep(tensors):
        tensors[f"gpt_neox.layers.1.attention.{name}"] = torch.tensor(value)

    folder = edited(save("gpt_neox", tmp_path), keep)
    choice = choose_export_dtype(ExportConfig(), folder, probe_rows(folder, tokens()))
    assert (choice.dtype, choice.refused) == (torch.float16, {})
    assert resolve_export_dtype(ExportConfig(), folder) == torch.float16


def wide_product(tensors):
    """Let gate and up of a block multiply to a number beyond float16."""
    for part in ("gate_proj", "up_proj"):
        tensors[f"model.layers.1.mlp.{part}.weight"][7] = 40.0
    tensors["model.layers.1.mlp.down_proj.weight"][:, 7] *= 1e-6


def large_queries(tensors):
    """Leave the scores of attention what they are, between huge queries and tiny keys."""
    tensors["model.layers.1.self_attn.q_proj.weight"] *= 2e4
    tensors["model.layers.1.self_attn.k_proj.weight"] /= 2e4


def tiny_weights(tensors):
    """Leave the MLPs what they are, with weights below what float16 can tell from zero."""
    for layer in range(3):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.post_attention_layernorm.weight"] *= 300
        tensors[f"{prefix}.mlp.gate_proj.weight"] /= 300
        tensors[f"{prefix}.mlp.up_proj.weight"] *= 1e-7 / 2
        tensors[f"{prefix}.mlp.down_proj.weight"] *= 6e4


def loud_logits(tensors):
    tensors["model.norm.weight"] *= 3e4


CASES = {
    "tied embedding": ("llama", begin("model.embed_tokens.weight", 6e4)),
    "norms of one plus weight": ("gemma", begin("model.embed_tokens.weight", 6e4)),
    "product inside an MLP": ("mistral", wide_product),
    "attention": ("llama", large_queries),
    "numbers too small": ("mistral", tiny_weights),
    "logits": ("llama", loud_logits),
    "gpt_neox": ("gpt_neox", begin("gpt_neox.embed_in.weight", 6e4)),
    "opt": ("opt", begin("model.decoder.embed_tokens.weight", 6e4)),
}


@pytest.mark.parametrize("case", CASES)
def test_auto_leaves_float16_where_its_arithmetic_does_not_hold(tmp_path, case):
    family, edit = CASES[case]
    folder = edited(save(family, tmp_path), edit)
    choice = choose_export_dtype(ExportConfig(), folder, probe_rows(folder, tokens()))
    assert list(choice.refused) == ["float16"]
    assert choice.refused["float16"].endswith(" 65504") == (case != "numbers too small")
    assert choice.dtype == torch.bfloat16
    asked, rows = ExportConfig(dtype="float16"), probe_rows(folder, tokens())
    if "too near" in choice.refused["float16"]:  # who asks for it takes it as far as it goes
        assert choose_export_dtype(asked, folder, rows).dtype == torch.float16
        return
    with pytest.raises(FloatTypeError) as refused:
        choose_export_dtype(asked, folder, rows)
    assert refused.value.holds == ["bfloat16", "float32"]


def coarse(folder, stored, told=None):
    """Write a deep random model whose logits bfloat16 moves far, and that leaves float16.

    The number of the residual stream that is too large for float16 is made in the first MLP.
    """
    config = tiny_config("llama", bos_token_id=0, num_hidden_layers=8)
    path = save_tiny_model(folder, config) / "model.safetensors"
    tensors = {
        name: tensor if tensor.ndim == 1 or "embed" in name else 2 * tensor
        for name, tensor in load_file(path).items()
    }
    tensors["model.embed_tokens.weight"][:, 3] = 0.0
    tensors["model.embed_tokens.weight"][0] = torch.eye(64)[3] * 20
    for part in ("gate_proj", "up_proj"):
        tensors[f"model.layers.0.mlp.{part}.weight"][5] = torch.eye(64)[3] * 8
    tensors["model.layers.0.mlp.down_proj.weight"][:, 5] = torch.eye(64)[7] * 100
    halves = {name: tensor.bfloat16().to(stored) for name, tensor in tensors.items()}
    save_file(halves, path, metadata={"format": "pt"})
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"dtype": told}))
    return folder


TEXT_IDS = torch.randint(1, 256, (8, 32), generator=torch.Generator().manual_seed(1))
FAR = "logits move by 12 % of their size"


def test_a_model_stored_in_bfloat16_may_be_read_in_it_however_far_that_is_from_float32(tmp_path):
    chosen = {}
    for name, stored, told in [
        ("bfloat16", torch.bfloat16, "bfloat16"),
        ("weights alone", torch.bfloat16, None),
        ("float32", torch.float32, None),  # the same numbers, run by their author in float32
        ("run in float32", torch.bfloat16, "float32"),
    ]:
        folder = coarse(tmp_path / name, stored, told)
        rows = probe_rows(folder, TEXT_IDS)
        chosen[name] = choose_export_dtype(ExportConfig(), folder, rows)
    own, far = chosen["bfloat16"], chosen["float32"]
    assert (own.dtype, list(own.refused)) == (torch.bfloat16, ["float16"])
    assert own.note == f"{FAR}, as those of the float model do, which is stored in it"
    assert chosen["weights alone"] == own
    assert (far.dtype, far.note, far.refused["bfloat16"]) == (torch.float32, "", FAR)
    assert chosen["run in float32"] == far


def test_an_export_in_the_float_type_of_the_float_model_is_written_as_its_readers_run_it(tmp_path):
    result = quantize(
        coarse(tmp_path / "model", torch.bfloat16, "bfloat16"),
        calibration=CalibrationConfig(source="random", samples=8, length=32),
        bits=8,
        group_size=32,
        method="rtn",
        norm_tweak=False,
        final_tune=False,
        seed=5,
        progress=False,
    )
    assert result.report.dtype == "bfloat16"
    assert "bfloat16: logits move by 15 % of their size, as those of" in str(result.report)
    assert result.verify().logit_difference < 1e-2


def test_calibration_windows_are_tried_with_what_begins_a_document_and_without(tmp_path):
    folder = save("llama", tmp_path)
    windows = tokens(batch=6, length=12)
    rows = probe_rows(folder, windows)
    assert rows.shape == (6, 12)  # ids all over the vocabulary, a bare window, four that begin
    assert torch.equal(rows[1], windows[0])
    assert rows[2:, 0].tolist() == [1] * 4
    assert torch.equal(rows[2:, 1:], windows[:4, :-1])
    assert torch.equal(probe_rows(folder, rows[2:])[2:], rows[2:])  # not twice
