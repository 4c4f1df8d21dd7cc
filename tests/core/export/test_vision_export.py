"""Models that read images: the text tower is quantized, all else is what it was, bit for bit."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from normtweak_core import quantize
from normtweak_core.calibration.generate import generate_windows
from normtweak_core.errors import InputError
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.skeleton import build_skeleton
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.model.structure import find_blocks, find_norms
from tests.core.vision_models import (
    IMAGE,
    VISION_FAMILIES,
    VOCABULARY,
    word,
    word_windows,
    write_llava_processor,
    write_vision_model,
)

QUICK = {"bits": 4, "group_size": 32, "effort": "fast", "progress": False}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = write_vision_model(tmp_path_factory.mktemp("models") / "llava", "llava")
    write_llava_processor(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(llava):
    settings = {"bits": 4, "group_size": 32, "final_tune": {"steps": 4}, "progress": False}
    return quantize(llava, samples=8, length=32, **settings)  # which writes its own text


def parameters(folder):
    return dict(AutoModelForImageTextToText.from_pretrained(folder).named_parameters())


def test_whatever_reads_images_is_the_source_bit_for_bit(llava, quantized, tmp_path):
    was, found = parameters(llava), parameters(quantized.save(tmp_path / "saved"))
    same = {name for name in was if name in found and torch.equal(was[name], found[name])}
    sees = {name for name in was if "vision_tower" in name or "multi_modal" in name}
    assert len(sees) > 60
    assert sees <= same
    changed = {name for name in was if name not in same and "norm" not in name}
    assert changed
    assert all(".language_model.layers." in name for name in changed)


def test_an_independent_reader_finds_what_was_quantized(quantized):
    assert quantized.verify().num_quantized == 14


def test_processor_files_come_along_and_open(llava, quantized, tmp_path):
    folder = quantized.save(tmp_path / "saved")
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "LlavaProcessor"
    name = "processor_config.json"
    assert (folder / name).read_bytes() == (llava / name).read_bytes()
    assert name in json.loads((folder / "normtweak.json").read_text())["files"]


def test_report_and_card_say_what_it_was_calibrated_on(quantized):
    assert quantized.report.calibration.image_windows == 0
    assert any("calibrated and measured on text alone" in note for note in quantized.report.notes())
    card = (quantized.record.folder / "README.md").read_text()
    assert "calibrated on text alone" in card
    assert "from transformers import AutoModelForImageTextToText, AutoProcessor" in card


def test_generated_text_holds_no_token_of_an_image(llava):
    model = load_causal_lm(llava, torch.float32, "cpu")
    names = {word(number): number for number in range(VOCABULARY)}  # none of them is special
    inner = Tokenizer(models.WordLevel(names, unk_token="aa"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="aa")
    with torch.no_grad():
        model.lm_head.weight[IMAGE] = 100 * model.lm_head.weight[IMAGE]
        windows = generate_windows(model, tokenizer, 8, 24, seed=0).input_ids
    assert len(windows.unique()) > 20
    assert IMAGE not in windows


def test_the_float_type_is_that_of_the_source(quantized):
    assert quantized.record.dtype == "float32"


@pytest.mark.parametrize("family", [name for name in VISION_FAMILIES if name != "llava"])
def test_every_family_is_walked_as_it_runs_itself(family, tmp_path):
    folder = write_vision_model(tmp_path / family, family)
    skeleton = build_skeleton(folder, torch.float32)
    prefix = find_blocks(skeleton).prefix
    assert prefix in ("model.language_model.layers", "model.text_model.layers")
    assert all(name.startswith(prefix.removesuffix("layers")) for name in find_norms(skeleton))
    ids = word_windows(2, 12)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        found = StreamedModel(folder, torch.float32, "cpu").logits(ids)
    assert torch.equal(found, wanted)


# What readers open of them: `docs/log.md`; a reader takes as long as all the rest.
@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3"])
def test_other_towers_go_the_whole_way(family, tmp_path):
    folder = write_vision_model(tmp_path / family, family)
    made = quantize(folder, calibration=word_windows(8, 24), **QUICK)
    assert len(made.report.blocks) == 2
    was, found = parameters(folder), parameters(made.record.folder)
    tower = [name for name in was if ".visual." in name or ".vision_tower." in name]
    assert tower
    assert all(torch.equal(was[name], found[name]) for name in tower)


def test_a_text_with_the_token_of_an_image_is_refused(llava):
    windows = word_windows(8, 24)
    windows[3, 5] = 95
    with pytest.raises(InputError, match=r"calibration must hold text alone.*'<image>' stands for"):
        quantize(llava, calibration=windows, **QUICK)
