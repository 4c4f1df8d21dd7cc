"""One call from a float model to a quantized one: what it gives, and what it refuses."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import normtweak_core
from normtweak_core import ExportConfig, InputError, NormTweakConfig, quantize
from normtweak_core.export.payload import payload_sha256
from normtweak_core.library.settings import parse_settings
from tests.tiny_exports import save_tiny_model, tiny_config

IDS = (torch.arange(8 * 16).reshape(8, 16) * 7919 + 13) % 256
QUICK = {"bits": 4, "group_size": 32, "final_tune": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("library") / "model", tiny_config("llama"))


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def result(folder, told):
    return quantize(
        folder, **QUICK, calibration=IDS, progress=lambda *how_far: told.append(how_far)
    )


def test_a_saved_result_is_what_readers_open(result, tmp_path):
    saved = result.save(tmp_path / "saved")
    assert payload_sha256(saved) == result.report.export_sha256
    stock = AutoModelForCausalLM.from_pretrained(saved)
    assert stock.dtype == result.model.dtype == torch.float16
    with torch.inference_mode():
        theirs, ours = stock(IDS).logits.float(), result.model(IDS).logits.float()
    assert ((theirs - ours).norm() / ours.norm()).item() < 2e-3
    assert "# saved" in (saved / "README.md").read_text().splitlines()
    assert result.save(saved) == saved  # an earlier export is replaced
    assert result.tokenizer.decode(result.tokenizer("a b").input_ids) == "a b"


def test_a_result_verifies_itself_before_it_is_saved(result):
    found = result.verify()
    assert found.num_quantized == 2 * 7
    assert found.payload_sha256 == result.report.export_sha256


def test_the_report_tells_every_block(result):
    report = result.report
    assert [block.block for block in report.blocks] == [0, 1]
    assert (report.format, report.dtype, report.refused) == ("compressed-tensors", "float16", {})
    assert 4 < report.bits_per_weight < 5.5
    first = report.blocks[0]
    row = f"| 0 | {first.drift_quantized:.4f} | {first.drift_tweaked:.4f} | "
    assert row + first.tweak.outcome in result._repr_markdown_()
    assert f"    0    {first.drift_quantized:.4f}" in repr(result)


def test_progress_goes_through_all_parts_to_their_ends(result, told):
    names = list(dict.fromkeys(what for what, _, _ in told))
    assert names == ["blocks", "export"]
    for name in names:
        counts = [(done, total) for what, done, total in told if what == name]
        assert counts == sorted(counts)
        assert counts[-1][0] == counts[-1][1]


def test_a_bar_is_drawn_and_left_full(folder, capsys):
    quantize(folder, **QUICK, calibration=IDS, method="rtn", norm_tweak=False, progress=True)
    drawn = capsys.readouterr().err
    assert "blocks: 100%" in drawn
    assert "2/2" in drawn


def test_what_lies_in_the_temporary_folder_goes_with_the_result(folder):
    passing = quantize(folder, **QUICK, calibration=IDS, norm_tweak=False, progress=False)
    lies = passing.record.folder
    assert lies.is_dir()
    del passing
    assert not lies.parent.exists()


def test_sections_are_given_whole_or_in_short():
    def parsed(**sections):
        return parse_settings({"source": "x"}, {}, {}, sections, 0)

    assert parsed(norm_tweak=False).norm_tweak == NormTweakConfig(enabled=False)
    assert parsed(norm_tweak={"lr": 0.5}).norm_tweak == NormTweakConfig(lr=0.5)
    assert parsed(norm_tweak=NormTweakConfig(lr=2)).norm_tweak == NormTweakConfig(lr=2)
    assert parsed(export="gptq").export == ExportConfig(format="gptq")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"bits": 5}, "bits must be 2, 3, 4 or 8; found 5"),
        ({"grup_size": 64}, "grup_size is no argument of .*: did you mean group_size?"),
        ({"group_size": 48}, "group_size must divide every input width; 48 does not divide 128"),
        ({"samples": 4}, "samples must be at least 8; found 4"),
        ({"seed": -1}, "seed must be at least 0; found -1"),
        ({"norm_tweak": {"lrr": 1}}, "norm_tweak.lrr is not .*did you mean norm_tweak.lr?"),
        ({"norm_tweak": "yes"}, "norm_tweak must be a section with keys such as enabled, loss"),
        ({"export": "bitnet"}, "export.format must be one of auto, .* found bitnet, which holds t"),
        ({"export": "zip"}, "export.format must be .*compressed-tensors.*; found 'zip'"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N; found 'gpu'"),
        ({"length": 65}, "length must be at most the model's context of 64 tokens; found 65"),
        ({"progress": "yes"}, "progress must be True, False or a function"),
        ({"calibration": "a text"}, r"calibration must be a list of texts, .* give \[text\]"),
        ({"calibration": [1, 2]}, "calibration must be a list of texts.* a list that holds a int"),
        ({"calibration": ["", " "]}, "calibration must hold text; found 2 empty texts"),
        ({"calibration": ["short"]}, "fill at least one window of 64 tokens; found 5"),
        ({"calibration": IDS.float()}, "calibration must be whole numbers .* found float32"),
        ({"calibration": IDS[:4]}, r"at least 8 x 8, .*found int64 of shape \(4, 16\)"),
        ({"calibration": IDS - 1}, "calibration must hold no padding .* found the id -1"),
        ({"calibration": IDS + 256}, "calibration must hold tokens of the model alone"),
        ({"calibration": IDS.repeat(1, 8)}, "model's context of 64 tokens; found 128: cut them"),
        ({"calibration": IDS, "samples": 8}, "samples is for texts and .* taken as they are"),
    ],
)
def test_a_wrong_argument_is_told_by_its_name(folder, arguments, told):
    with pytest.raises(InputError, match=told):
        quantize(folder, **QUICK | {"progress": False} | arguments)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("reference:gemma", "must be one of llama, neox; got 'gemma'"),
        ("nowhere at all", "source must be a folder, .* no folder is called 'nowhere at all'"),
        (torch.nn.Linear(1, 1), "source must be a folder.*found a Linear: save a model in memory"),
    ],
)
def test_a_model_that_is_not_there_is_told(source, told):
    with pytest.raises(InputError, match=told):
        quantize(source, progress=False)


def test_the_package_offers_its_names_and_no_others():
    assert set(normtweak_core.__all__) <= set(dir(normtweak_core))
    for name in normtweak_core.__all__:
        assert getattr(normtweak_core, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = normtweak_core.quantise
