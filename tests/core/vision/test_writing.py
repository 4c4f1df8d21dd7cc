"""Windows that begin with an image: what is in them, and what is refused."""

import json
import statistics

import pytest
import torch
import transformers as hf
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

from normtweak_core import quantize
from normtweak_core.calibration.config import CalibrationConfig, ImageCalibrationConfig
from normtweak_core.calibration.generate import uniforms
from normtweak_core.calibration.quality import judged
from normtweak_core.calibration.sets import CalibrationSet
from normtweak_core.calibration.storage import load_calibration_set, save_calibration_set
from normtweak_core.errors import InputError
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.streaming import StreamedModel
from normtweak_core.vision.images import Given, images_content, open_image, read_images
from normtweak_core.vision.processor import Prompt, processed
from normtweak_core.vision.windows import ImageWindows, model_inputs
from normtweak_core.vision.writing import _joined, _written, write_image_windows
from tests.core.vision.test_image_windows import windows_of
from tests.core.vision_models import (
    IMAGE,
    SPECIAL,
    VOCABULARY,
    word,
    write_images,
    write_llava_next_processor,
    write_llava_processor,
    write_vision_model,
)

SAMPLES, LENGTH = 8, 24
QUICK = {"bits": 4, "group_size": 32, "effort": "fast", "progress": False}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = write_vision_model(tmp_path_factory.mktemp("models") / "llava", "llava")
    write_llava_processor(folder)
    return folder


@pytest.fixture(scope="module")
def model(llava):
    return load_causal_lm(llava, torch.float32, "cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), 10)


def write(model, llava, images, samples=SAMPLES, length=LENGTH, seed=0):
    tokenizer = AutoTokenizer.from_pretrained(llava)
    return write_image_windows(model, tokenizer, llava, str(images), samples, length, seed)


@pytest.fixture(scope="module")
def written(model, llava, images):
    return write(model, llava, images / "images.jsonl")


def test_a_window_is_an_image_its_text_and_what_the_model_writes(written, llava, images):
    windows, facts = written
    assert facts == {"image_tokens": 4, "cut_to_squares_of": None}
    assert windows.shape == (SAMPLES, LENGTH)
    assert windows.is_text.tolist() == [False] * 4 + [True] * 20
    assert (windows.input_ids[:, :4] == IMAGE).all()
    given = [word(number) for number in windows.input_ids[:, 4].tolist()]
    rows = [json.loads(line) for line in (images / "images.jsonl").read_text().splitlines()]
    texts = {row["text"].split()[0]: row["image"] for row in rows}
    assert len(set(given)) == SAMPLES
    processor = AutoProcessor.from_pretrained(llava)
    for place, first in enumerate(given):  # the pixels of each are those of its own image
        found = next(one for one in read_images(str(images)) if one.image.name == texts[first])
        alone = processed(processor, found, open_image(found)).inputs["pixel_values"]
        assert torch.equal(windows[place : place + 1].inputs["pixel_values"], alone)


def test_each_token_is_among_the_likeliest_that_the_model_sees_and_is_a_word(written, model):
    windows, _ = written
    with torch.no_grad():
        logits = model(**model_inputs(windows)).logits
    logits[..., [*SPECIAL]] = -torch.inf
    least = logits.topk(50).values[..., -1]
    begun = 4 + 3  # image and text
    chosen = logits[:, begun - 1 : -1].gather(2, windows.input_ids[:, begun:, None])[..., 0]
    assert (chosen >= least[:, begun - 1 : -1] - 1e-4).all()
    assert not torch.isin(windows.text, torch.tensor([*SPECIAL])).any()


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "gemma3", "idefics3", "internvl"])
def test_what_is_written_behind_an_image_counts_positions_as_the_whole_window_does(
    family, tmp_path
):
    folder, windows = write_vision_model(tmp_path / family, family), windows_of(family)
    vision = load_causal_lm(folder, torch.float32, "cpu")
    prompts = []
    for window in windows.split(1):
        by_token = {n: one for n, one in window.inputs.items() if one.shape == window.shape}
        rest = {name: one for name, one in window.inputs.items() if name not in by_token}
        prompts.append(Prompt(window.input_ids, rest, by_token))
    never = torch.zeros(VOCABULARY, dtype=torch.bool)
    never[10:] = True  # ten tokens, so that the likeliest differ clearly
    ids = _written(vision, prompts, never, 24, 0, None)
    assert torch.equal(ids[:, :14], windows.input_ids)
    whole = ImageWindows(ids, _joined(prompts, 24), torch.ones(24, dtype=torch.bool))
    with torch.no_grad():
        shares = vision(**model_inputs(whole)).logits[..., :10].double().softmax(-1)
    draws = torch.cat([uniforms(0, range(n, n + 1), 24) for n in range(len(ids))])[..., 0]
    for row in range(len(ids)):
        for place in range(14, 24):
            ranked, tokens = shares[row, place - 1].sort(descending=True)
            drawn = int((ranked.cumsum(0) / ranked.sum() <= draws[row, place]).sum())
            assert tokens[drawn] == ids[row, place]


def test_a_chat_template_puts_the_image_and_what_is_said(llava, images, tmp_path):
    processor = AutoProcessor.from_pretrained(llava)
    processor.chat_template = (
        "{% for part in messages[0].content %}{% if part.type == 'image' %}<s> <image>"
        "{% else %} {{ part.text }}{% endif %}{% endfor %} ba"
    )
    given, bare = read_images(str(images / "images.jsonl"))[0], read_images(str(images))[0]
    image = open_image(given)
    ids = processed(processor, given, image).input_ids[0].tolist()
    said = [10, 7, 8]
    assert ids == [1, *[IMAGE] * 4, *said, 26]
    assert processed(processor, bare, image).input_ids[0].tolist() == [1, *[IMAGE] * 4, 26]
    whole = Given(given.image, "bb <image> bc", "here")
    assert processed(processor, whole, image).input_ids[0].tolist() == [27, *[IMAGE] * 4, 28]
    twice = Given(given.image, "<image> <image>", "here")
    with pytest.raises(InputError, match="that the model's processor takes; here ends in Value"):
        processed(processor, twice, image)


def test_a_prompt_that_the_mask_takes_as_a_whole_is_refused(images, tmp_path):
    folder = write_vision_model(tmp_path / "paligemma", "paligemma")
    inner = hf.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    inner.image_seq_length = 4
    tokenizer = AutoTokenizer.from_pretrained(folder)
    hf.PaliGemmaProcessor(inner, tokenizer).save_pretrained(folder)
    told = refused(folder, images, length=48)
    assert "the token_type_ids of its processor mark others too, as PaliGemma's mark a" in told


def test_a_processor_that_knows_more_tokens_than_the_model_is_refused(images, tmp_path):
    folder = write_vision_model(tmp_path / "idefics3", "idefics3")
    side = {"longest_edge": 16}
    inner = hf.Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    hf.Idefics3Processor(inner, tokenizer, image_seq_len=1).save_pretrained(folder)
    assert "what the processor makes of an image must hold tokens of the model alone" in refused(
        folder, images, length=48
    )


def test_images_of_all_modes_are_read_as_they_were_held(tmp_path):
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        kind = "tiff" if mode in ("CMYK", "I;16") else "png"
        Image.new(mode, (20, 30)).save(tmp_path / f"{mode.replace(';', '')}.{kind}")
    turned = Image.new("RGB", (20, 30))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter to the right
    turned.save(tmp_path / "turned.jpg", exif=exif)
    found = {one.image.stem: open_image(one) for one in read_images(str(tmp_path))}
    assert len(found) == 7
    assert {image.mode for image in found.values()} == {"RGB"}
    assert {n: i.size for n, i in found.items() if i.size != (20, 30)} == {"turned": (30, 20)}


def test_equal_seeds_give_equal_windows_and_others_do_not(written, model, llava, images):
    again, _ = write(model, llava, images / "images.jsonl")
    assert torch.equal(again.input_ids, written[0].input_ids)
    other, _ = write(model, llava, images / "images.jsonl", seed=1)
    assert not torch.equal(other.input_ids, written[0].input_ids)


def test_a_folder_has_no_texts(model, llava, images):
    windows, _ = write(model, llava, images)
    assert (windows.input_ids[:, :4] == IMAGE).all()
    assert not torch.isin(windows.text, torch.tensor([*SPECIAL])).any()


def test_images_that_take_different_tokens_are_cut_to_squares(images, tmp_path):
    folder = write_vision_model(tmp_path / "next", "llava_next")
    write_llava_next_processor(folder)
    model = load_causal_lm(folder, torch.float32, "cpu")
    processor = AutoProcessor.from_pretrained(folder)
    given = read_images(str(images))
    sizes = {len(processed(processor, one, open_image(one)).columns([IMAGE])) for one in given}
    assert len(sizes) > 1
    windows, facts = write(model, folder, images / "images.jsonl", samples=10, length=48)
    sides = [min(open_image(one).size) for one in given]
    assert facts["cut_to_squares_of"] == statistics.median_low(sides) > min(sides)
    assert facts["image_tokens"] == int((~windows.is_text).sum())
    assert torch.equal(windows.is_text, ~(windows.input_ids == IMAGE).all(0))
    streamed = StreamedModel(folder, torch.float32, "cpu")
    with torch.no_grad():
        *_, states = streamed.walk([windows])
        assert torch.equal(streamed.head(states[0]), model(**model_inputs(windows)).logits)


def test_a_set_with_images_is_kept_and_judged_by_its_text(written, llava, model, tmp_path):
    windows, facts = written
    made = CalibrationSet(windows.input_ids, "generated", facts, windows)
    save_calibration_set(tmp_path / "set.safetensors", made)
    found = load_calibration_set(tmp_path / "set.safetensors")
    assert found.sha256 == made.sha256
    assert torch.equal(found.windows.is_text, windows.is_text)
    other = {"pixel_values": windows.inputs["pixel_values"] + 1}
    changed = type(windows)(windows.input_ids, other, windows.is_text)
    assert CalibrationSet(windows.input_ids, "generated", facts, changed).sha256 != made.sha256
    tokenizer = AutoTokenizer.from_pretrained(llava)
    quality, nll = judged(found, tokenizer, StreamedModel(llava, torch.float32, "cpu"))
    assert (quality.image_windows, quality.image_tokens) == (SAMPLES, 4)
    with torch.no_grad():
        losses = -model(**model_inputs(windows)).logits.log_softmax(-1)
    own = losses[:, 3:-1].gather(2, windows.input_ids[:, 4:, None])[..., 0].mean(1)
    assert torch.allclose(nll.float(), own, atol=1e-5)


def test_images_calibrate_a_model_and_its_report_and_card_say_so(llava, images, tmp_path):
    made = quantize(llava, samples=8, length=LENGTH, images=images, **QUICK)
    told = "calibrated on 8 windows of an image and text (4 tokens of each are the image's)"
    assert any(told in note for note in made.report.notes())
    card = (made.record.folder / "README.md").read_text()
    assert "whose text tower was calibrated on 8 windows of an image and text:" in card
    other = write_images(tmp_path / "other", 10, seed=1)
    again = quantize(llava, samples=8, length=LENGTH, images=other, **QUICK)
    assert made.record.payload_sha256 != again.record.payload_sha256


def test_what_is_read_of_images_is_their_content_and_text(images, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in images.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    lists = [str(place / "images.jsonl") for place in (images, copy)]
    assert images_content(lists[0]) == images_content(lists[1])
    changed = (copy / "images.jsonl").read_text().replace(" ah", " ai")
    (copy / "images.jsonl").write_text(changed)
    assert images_content(lists[0]) != images_content(lists[1])
    before = images_content(str(copy))
    (copy / "000.png").write_bytes((copy / "001.png").read_bytes())
    assert images_content(str(copy)) != before


def refused(source, images, **options):
    with pytest.raises(InputError) as caught:
        quantize(source, images=str(images), **{"samples": 8, "length": 24} | QUICK | options)
    return caught.value.sentence


def test_what_does_not_fit_is_refused_in_one_sentence(llava, images, tmp_path):
    assert refused(llava, tmp_path / "none").startswith(
        "images must be a folder of images or a .jsonl file; "
    )
    (tmp_path / "empty").mkdir()
    assert "must hold images (.png, .jpg" in refused(llava, tmp_path / "empty")
    given = tmp_path / "given"
    write_images(given, 8)
    (given / "003.png").write_bytes(b"no image")
    assert "003.png cannot: cannot identify image file" in refused(llava, given)
    (given / "003.png").unlink()
    listed = given / "images.jsonl"
    assert f"{listed} line 4 names {given / '003.png'}, which does not exist" in refused(
        llava, listed
    )
    assert f"asks for 8 windows with an image each; {given} holds 7 images" in refused(llava, given)
    listed.write_text('{"image": 3}\n')
    assert f'{listed} line 1 must be an object with a string field "image"' in refused(
        llava, listed
    )
    assert refused(llava, images, length=8) == (
        "length must leave room for text of 8 tokens behind an image; it is 8, and an image ends "
        "at token 4: raise it."
    )


def test_images_are_for_models_that_read_them(images, llava, tmp_path):
    assert refused("reference:llama", images) == (
        "images is for a model that reads images; this one reads text alone (LlamaForCausalLM): "
        "remove it, or choose another model."
    )
    several = {"bits": {"average": 4.0, "choose_from": [2, 4]}}
    deep = write_vision_model(tmp_path / "deep", "qwen3_vl")
    assert refused(deep, images) == (
        "images is for a model that puts images in front of its first block; "
        "Qwen3VLForConditionalGeneration adds them between its blocks as well: remove it, and "
        "calibrate on text alone."
    )
    assert "bits must be one width with calibration.images" in refused(llava, images, **several)
    texts = ["a text"]
    assert "images is for windows that the model writes; found it beside calibration" in refused(
        llava, images, calibration=texts
    )
    blind = write_vision_model(tmp_path / "blind", "llava")
    found = refused(blind, images)
    assert found.startswith("images needs the processor of the model; ")
    assert str(blind) in found


@pytest.mark.parametrize("more", [{"source": "random"}, {"languages": None}])
def test_images_go_with_what_the_model_writes(more, images):
    name = next(iter(more))
    with pytest.raises(ValueError, match=f"images is only read with .*found {name}"):
        ImageCalibrationConfig(images=str(images), **more)


def test_other_sets_know_no_images():
    with pytest.raises(ValueError, match="images"):
        CalibrationConfig(images="somewhere")
