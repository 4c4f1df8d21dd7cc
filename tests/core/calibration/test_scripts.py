import pytest

from normtweak_core.calibration.scripts import SCRIPTS, count_scripts, is_word, script_of_token


@pytest.mark.parametrize(
    ("text", "script"),
    [
        (" the", "latin"),
        ("Straße", "latin"),
        ("слово", "cyrillic"),
        ("漢字", "cjk"),
        ("ひらがな", "hiragana"),
        ("ｶﾀｶﾅ", "katakana"),
        ("\uff21\uff22", "latin"),
        ("한국", "hangul"),
        ("नमस्ते", "devanagari"),
        ("שלום", "hebrew"),
        ("שלום-a", None),  # two scripts
        ("1234", None),
        ("\ufffd", None),
        ("", None),
    ],
)
def test_the_script_of_a_token_is_that_of_its_letters(text, script):
    assert script_of_token(text) == script


def test_letters_are_counted_by_script_and_nothing_else_is():
    assert count_scripts("ab, 12 вг! д") == {"latin": 2, "cyrillic": 3}


@pytest.mark.parametrize(
    ("text", "word"), [("नमस्ते", True), ("don't", False), ("a1", False), ("́", False), ("", False)]
)
def test_a_word_is_letters_and_their_marks(text, word):
    assert is_word(text) is word


def test_every_script_is_a_name_that_unicode_uses():
    import sys
    import unicodedata

    names = {unicodedata.name(chr(c), "").split(" ")[0].lower() for c in range(sys.maxunicode)}
    names |= {name.split("-")[0] for name in names}
    assert set(SCRIPTS) <= names
