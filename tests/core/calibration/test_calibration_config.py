import pytest
from pydantic import ValidationError

from normtweak_core.calibration.config import CalibrationConfig


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"languages": ["latin", "english"]},
            r"different scripts out of latin.*found \['english'\]",
        ),
        ({"languages": []}, r"different scripts out of"),
        ({"languages": ["latin", "latin"]}, r"different scripts .*found \['latin', 'latin'\]"),
        ({"source": "random", "languages": None}, r"languages is only read with source generated"),
        ({"source": "text"}, "path is required with source text; found none"),
        ({"source": "dataset"}, "path is required with source dataset"),
        ({"path": "a.txt"}, "path is only read with source text or dataset; found source gener"),
    ],
)
def test_a_key_that_would_have_no_effect_or_no_meaning_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        CalibrationConfig(**keys)


@pytest.mark.parametrize("languages", ["auto", None, ["latin", "cjk"]])
def test_languages_are_automatic_absent_or_named(languages):
    assert CalibrationConfig(languages=languages).languages == languages
