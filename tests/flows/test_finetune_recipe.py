"""Wrong recipes of a fine-tuning, each refused in a sentence."""

import re

import pytest

from flows.recipes.finetune import FinetuneRecipe
from normtweak_core.errors import InputError


def refused(data: dict) -> str:
    with pytest.raises(InputError) as error:
        FinetuneRecipe.parse(data)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"calibration": {}}, "calibration is not read by normtweak finetune.*: remove it"),
        ({"norm_tweak": {}}, "norm_tweak is not read by normtweak finetune"),
        ({"model": {}}, "model.source is required, the folder of an export; found none"),
        ({"finetune": {"steps": 0}}, "finetune.steps must be at least 1; found 0"),
        ({"finetune": {"lora": {"rank": 0}}}, "finetune.lora.rank must be at least 1; found 0"),
        (
            {"finetune": {"lr": 0.1, "lora": {"rank": 4}}},
            "finetune.lr is only read without finetune.lora, .*: remove it",
        ),
        (
            {"finetune": {"batch": 4, "accumulate": 3}},
            "finetune.accumulate must divide batch; found 3 parts of 4 windows",
        ),
        (
            {"finetune": {"data": {"source": "text"}}},
            "finetune.data.path is required with source text",
        ),
        ({"export": {"format": "bitnet"}}, "export.format bitnet is a format of ternary models"),
        (
            {"finetune": {"step": 3}},
            "finetune.step is not a recipe key; did you mean finetune.steps",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_a_sentence(change, text):
    data = {"name": "x", "model": {"source": "somewhere"}} | change
    assert re.search(text, refused(data)), refused(data)
