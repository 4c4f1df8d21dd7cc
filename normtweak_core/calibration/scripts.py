"""Which script a piece of text is written in.

A token is too short to tell English from Dutch, so "language" means Unicode script throughout.
"""

import functools
import unicodedata
from collections import Counter

SCRIPTS = (
    "latin",
    "cyrillic",
    "greek",
    "armenian",
    "georgian",
    "hebrew",
    "arabic",
    "syriac",
    "ethiopic",
    "devanagari",
    "bengali",
    "gurmukhi",
    "gujarati",
    "oriya",
    "tamil",
    "telugu",
    "kannada",
    "malayalam",
    "sinhala",
    "thai",
    "lao",
    "tibetan",
    "myanmar",
    "khmer",
    "mongolian",
    "hangul",
    "cjk",
    "hiragana",
    "katakana",
)
# Written without spaces: a word does not begin with one, and one character can be a word.
UNSPACED = frozenset({"cjk", "hiragana", "katakana", "thai", "lao", "khmer", "myanmar", "tibetan"})


@functools.cache
def script_of_letter(letter: str) -> str | None:
    """Return the script of one character; None where it is no letter of a known script."""
    if not unicodedata.category(letter).startswith("L"):
        return None
    # Unicode names begin with the script: "CYRILLIC SMALL LETTER A", "HALFWIDTH KATAKANA LETTER A".
    words = unicodedata.name(letter, "").lower().replace("-", " ").split()
    if words and words[0] in ("fullwidth", "halfwidth"):
        words = words[1:]
    return words[0] if words and words[0] in SCRIPTS else None


def count_scripts(text: str) -> Counter[str]:
    """Return how many letters of each script a text holds."""
    counts: Counter[str] = Counter()
    # Each distinct character is looked up once; a calibration set has millions of characters.
    for letter, count in Counter(text).items():
        script = script_of_letter(letter)
        if script is not None:
            counts[script] += count
    return counts


def is_word(text: str) -> bool:
    """Return whether a text is nothing but letters and the marks that combine with them."""
    kinds = {unicodedata.category(character)[0] for character in text}
    return "L" in kinds and kinds <= {"L", "M"}


def script_of_token(text: str) -> str | None:
    """Return the one script of a token's letters; None without letters or with mixed ones."""
    counts = count_scripts(text)
    return next(iter(counts)) if len(counts) == 1 else None
