"""Recipes of a model that reads images: what is refused before the start, and what reports tell."""

import pytest

from flows.checks.preflight import preflight
from flows.pipeline.places import place_tags
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from flows.reports.quantize import images_row
from normtweak_core.errors import InputError
from tests.core.vision_models import write_images, write_vision_model
from tests.flows.stage_keys import changed, quantize_keys
from tests.flows.tiny_model import recipe_values, ternary_values

BLIND = "calibrated and measured on text alone"


@pytest.fixture(scope="module")
def seeing(project, tmp_path_factory):
    """A recipe of a model that reads images, as plain values, and a folder of images."""
    folder = tmp_path_factory.mktemp("seeing")
    model = write_vision_model(folder / "llava", "llava")
    images = write_images(folder / "images", 8)
    values = recipe_values(project) | {"model": {"source": str(model)}}
    values["calibration"] = {"samples": 8, "length": 16, "images": str(images)}
    values["quantization"] = {"group_size": 32}
    return values


def accept(kind, values, tmp_path):
    return preflight(kind.parse(values), tmp_path / "home")


def refused(kind, values, tmp_path):
    with pytest.raises(InputError) as caught:
        accept(kind, values, tmp_path)
    return caught.value.sentence


def test_only_the_blocks_of_the_text_tower_are_counted(seeing, tmp_path):
    shape = accept(Recipe, seeing, tmp_path).shape
    assert (shape.num_blocks, len(shape.linears), shape.hidden) == (2, 14, 32)
    assert all("vision" not in name for name in shape.linears)


def test_where_images_lie_is_recorded(seeing, tmp_path):
    ready = accept(Recipe, seeing, tmp_path)
    tags = place_tags(Recipe.parse(seeing), ready.source)
    assert tags["place.calibration.images"] == seeing["calibration"]["images"]
    assert tags["place.calibration.path"] == "none"


def test_what_does_not_fit_is_refused_before_the_start(seeing, project, tmp_path):
    text = recipe_values(project) | {"calibration": seeing["calibration"]}
    assert refused(Recipe, text, tmp_path) == (
        "calibration.images is for a model that reads images; this one reads text alone "
        "(LlamaForCausalLM): remove it, or choose another model."
    )
    more = seeing | {"calibration": seeing["calibration"] | {"samples": 9}}
    assert "calibration.samples asks for 9 windows with an image each" in refused(
        Recipe, more, tmp_path
    )
    trained = ternary_values(project) | {"model": seeing["model"]}
    assert refused(TernaryRecipe, trained, tmp_path).startswith(
        "ternary training needs a model that reads text alone; this one reads images as well "
        "(LlavaForConditionalGeneration)"
    )
    codes = seeing | {"base": str(project / "base"), "quantization": {}}
    assert refused(Recipe, codes, tmp_path).startswith("base needs a model that reads text alone")


def test_a_report_tells_what_images_were_seen():
    assert images_row({}) == []
    assert BLIND in images_row({"image_windows": 0, "image_tokens": 0})[0][1]
    assert (
        "8 windows of an image and text (4 tokens"
        in (images_row({"image_windows": 8, "image_tokens": 4})[0][1])
    )


def test_images_are_in_the_keys_by_content_and_not_by_place(project, tmp_path):
    values = recipe_values(project) | {"calibration": {"samples": 8, "length": 16}}
    folders = [tmp_path / name for name in ("one", "copy", "other")]
    for folder in folders:
        folder.mkdir()
        (folder / "a.png").write_bytes(b"other" if folder.name == "other" else b"image")
    recipes = [changed(values, "calibration.images", str(folder)) for folder in folders]
    written, one, copy, other = (quantize_keys(Recipe.parse(given)) for given in (values, *recipes))
    assert one == copy
    for found in (written, other):
        assert found["calibrate"] != one["calibrate"]
        assert found["block 0"] != one["block 0"]
