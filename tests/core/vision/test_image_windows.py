"""Windows with images: cut like tensors, and walked block by block as the model runs itself."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from normtweak_core.errors import InputError
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.quantization.streams import micro_batches
from normtweak_core.quantization.walk import BlockWalk
from normtweak_core.vision.windows import ImageWindows, model_inputs, of_text
from tests.core.vision_models import IMAGE, word_windows, write_vision_model

COUNT, LENGTH, FIRST = 4, 14, 2  # windows, tokens, and where the image begins
PIXELS = (COUNT, 3, 16, 16)
PATCHES = (COUNT * 16, 3 * 2 * 4 * 4)
GRID = torch.tensor([[1, 4, 4]]).repeat(COUNT, 1)
SIZES = torch.tensor([[16, 16]]).repeat(COUNT, 1)

# Tokens of an image, shape of its pixels, what else there is; what the model calls token types.
LAID_OUT = {
    "llava": (4, PIXELS, {}, None),
    "gemma3": (4, PIXELS, {}, "token_type_ids"),
    "paligemma": (4, PIXELS, {}, None),
    "qwen2_vl": (4, PATCHES, {"image_grid_thw": GRID}, "mm_token_type_ids"),
    "qwen2_5_vl": (4, PATCHES, {"image_grid_thw": GRID}, "mm_token_type_ids"),
    "idefics3": (1, (COUNT, 1, 3, 16, 16), {}, None),
    "smolvlm": (1, (COUNT, 1, 3, 16, 16), {}, None),
    "mistral3": (4, PIXELS, {"image_sizes": SIZES}, None),
    "internvl": (4, PIXELS, {}, None),
    "aya_vision": (1, PIXELS, {}, None),
}


def windows_of(family: str) -> ImageWindows:
    tokens, shape, more, types = LAID_OUT[family]
    ids = word_windows(COUNT, LENGTH)
    is_text = torch.ones(LENGTH, dtype=torch.bool)
    is_text[FIRST : FIRST + tokens] = False
    ids[:, ~is_text] = IMAGE
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    inputs = {"pixel_values": pixels} | more
    if types:
        inputs[types] = (~is_text).long().repeat(COUNT, 1)
    return ImageWindows(ids, inputs, is_text)


@pytest.mark.parametrize("family", LAID_OUT)
def test_the_walk_gives_the_logits_of_the_whole_model(family, tmp_path):
    folder, windows = write_vision_model(tmp_path / family, family), windows_of(family)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    streamed = StreamedModel(folder, torch.float32, "cpu")
    with torch.no_grad():
        wanted = model(**model_inputs(windows)).logits
        blind = model(input_ids=windows.input_ids).logits
        *_, states = streamed.walk([windows])
        assert torch.equal(streamed.head(states[0]), wanted)
    assert not torch.equal(blind, wanted)


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_vl"])
def test_what_one_window_says_of_positions_and_masks_is_right_for_the_others(family, tmp_path):
    folder, windows = write_vision_model(tmp_path / family, family), windows_of(family)
    walk = BlockWalk(StreamedModel(folder, torch.float32, "cpu"), windows)
    hidden = walk.start().x_f[2:]
    with torch.no_grad():
        for index in range(walk.num_blocks):
            hidden = walk.runner(index)(walk.load(index), hidden)
        model = AutoModelForImageTextToText.from_pretrained(folder)
        wanted = model(**model_inputs(windows[2:4])).logits
        assert torch.equal(walk.model.head(hidden), wanted)


def test_a_model_that_adds_to_the_stream_between_its_blocks_is_refused(tmp_path):
    folder = write_vision_model(tmp_path / "qwen3_vl", "qwen3_vl")
    streamed = StreamedModel(folder, torch.float32, "cpu")
    tokens, shape = 4, PATCHES
    windows = windows_of("qwen2_vl")
    assert (tokens, shape) == LAID_OUT["qwen2_vl"][:2]
    with pytest.raises(InputError, match=r"must run its blocks in order.*layers\.1"):
        streamed.embed(windows)


def test_windows_are_cut_with_all_that_belongs_to_them():
    windows = windows_of("qwen2_vl")
    part = windows[1:3]
    assert (len(part), part.shape) == (2, (2, LENGTH))
    assert torch.equal(part.input_ids, windows.input_ids[1:3])
    assert torch.equal(part.inputs["pixel_values"], windows.inputs["pixel_values"][16:48])
    assert len(part.inputs["image_grid_thw"]) == 2
    assert [len(one) for one in windows.split(3)] == [3, 1]
    assert torch.equal(windows.split(3)[1].input_ids, windows.input_ids[3:])
    assert micro_batches(windows) == micro_batches(windows.input_ids)


def test_columns_of_an_image_are_left_out():
    windows = windows_of("llava")
    assert torch.equal(windows.text, windows.input_ids[:, [0, 1, *range(6, LENGTH)]])
    values = torch.arange(COUNT * LENGTH).reshape(COUNT, LENGTH)
    assert torch.equal(of_text(values, windows), values[:, windows.is_text])
    assert torch.equal(of_text(values[:, 1:], windows, 1), values[:, 1:][:, windows.is_text[1:]])
    assert of_text(values, windows.input_ids) is values
