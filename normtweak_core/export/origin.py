"""Where an export comes from: the float model's own card, and whose codes it holds; no torch."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from normtweak_core.export.folder import MODEL_CARD
from normtweak_core.model.hub import LEGAL_FILES, hub_id_of

# What a card says of a model's licence and languages, as Hugging Face's hub reads it.
CARRIED = ("license", "license_name", "license_link", "language")
BIBTEX = re.compile(r"^[ ]{0,3}```[ ]*\w*[ ]*\n(?P<entry>@\w+[ ]*\{.*?)^[ ]{0,3}```", re.M | re.S)


@dataclass(frozen=True)
class Origin:
    """Where codes come from that another tool has made."""

    float_model: str
    base: str
    quantized_by: str
    license: str  # empty: it is not told


@dataclass(frozen=True)
class SourceCard:
    """What the float model's folder says of its licence, and how it wants to be cited."""

    hub_id: str | None = None  # of a model of the hub's cache
    head: dict[str, Any] = field(default_factory=dict)  # of `CARRIED`, what is there
    citations: tuple[str, ...] = ()  # BibTeX
    legal: tuple[str, ...] = ()  # names of files that go along

    @classmethod
    def of(cls, folder: Path) -> "SourceCard":
        """Return what a folder says; a card that cannot be read says nothing."""
        card = folder / MODEL_CARD
        text = card.read_text(encoding="utf-8-sig", errors="replace") if card.is_file() else ""
        head, body = _parted(text)
        legal = {path.name for name in LEGAL_FILES for path in folder.glob(name) if path.is_file()}
        return cls(
            hub_id=hub_id_of(folder),
            head={key: head[key] for key in CARRIED if head.get(key)},
            citations=tuple(found["entry"].strip() for found in BIBTEX.finditer(body)),
            legal=tuple(sorted(legal)),
        )

    @property
    def license(self) -> str:
        """What the card calls the licence; empty: it names none."""
        told = self.head.get("license", "")
        return told if isinstance(told, str) else ", ".join(map(str, told))


def _parted(text: str) -> tuple[dict[str, Any], str]:
    """Return the front matter of a card and what is below it."""
    text = text.lstrip()
    if not text.startswith("---"):
        return {}, text
    head, _, body = text[3:].partition("\n---")
    try:
        # Texts alone: `no` is a language, and a date that is none is nobody's business here.
        found = yaml.load(head, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, body
    return (found if isinstance(found, dict) else {}), body
