"""The text that every Python installation carries, split by file into training and held-out.

Three kinds of document: the topics of ``pydoc_data`` (prose), the docstrings of each module of the
standard library (prose), and the source of those modules without these docstrings, so that no
sentence stands twice. Tests, character tables and third-party packages are left out. A file is
held out as a whole, its docstrings with it, so that no held-out sentence was trained on.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

# Character tables and test data are not language; site-packages is not the standard library.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "__pycache__", "lib2to3", "encodings"}
)
# Held out as they would be, these two would decide the held-out loss by themselves: turtle.py,
# 100 kB of its own prose in odd English and German, and locale.py, mostly a table of aliases.
SKIPPED_FILES = frozenset({"turtle.py", "locale.py"})
HELD_OUT_SHARE = 0.1
MIN_CHARACTERS = 200


@dataclass(frozen=True)
class Document:
    """One text with the file it came from, relative to the standard library."""

    source: str
    kind: str  # topic | docstrings | code
    text: str

    @property
    def held_out(self) -> bool:
        """True for the files kept for evaluation; follows from the name alone, on any machine."""
        digest = hashlib.sha256(f"held-out {self.source}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64

    @property
    def sha256(self) -> str:
        """Hash of the text, as listed in the model card."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def documents(library: Path | None = None) -> list[Document]:
    """Return every document of this Python installation, sorted by source and kind.

    Args:
        library: Standard library folder; default: the running interpreter's.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    found = list(_topics())
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        skipped = relative.as_posix() in SKIPPED_FILES | {TOPICS_FILE}
        if SKIPPED_FOLDERS.isdisjoint(relative.parts) and not skipped:
            found.extend(_module_documents(path, relative.as_posix()))
    return sorted(found, key=lambda document: (document.source, document.kind))


TOPICS_FILE = "pydoc_data/topics.py"


def _topics() -> Iterator[Document]:
    for name, text in topics.items():
        if len(text) >= MIN_CHARACTERS:
            yield Document(f"{TOPICS_FILE}#{name}", "topic", text.strip() + "\n")


def _module_documents(path: Path, source: str) -> Iterator[Document]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (UnicodeDecodeError, SyntaxError):  # a handful of files in other encodings
        return
    code = _without_docstrings(text, tree)
    if len(code) >= MIN_CHARACTERS:
        yield Document(source, "code", code)
    prose = "\n\n".join(ast.get_docstring(node) for node in _documented(tree)) + "\n"
    if len(prose) >= MIN_CHARACTERS:
        yield Document(source, "docstrings", prose)


def _documented(tree: ast.Module) -> Iterator[ast.AST]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node):
            yield node


def _without_docstrings(text: str, tree: ast.Module) -> str:
    """Return the text less the lines that hold nothing but a docstring."""
    lines = text.split("\n")  # as ast counts them; splitlines() also breaks at form feeds
    dropped = set()
    for node in _documented(tree):
        docstring = node.body[0]
        before = lines[docstring.lineno - 1].encode()[: docstring.col_offset]
        after = lines[docstring.end_lineno - 1].encode()[docstring.end_col_offset :]
        if not before.strip() and not after.strip():
            dropped.update(range(docstring.lineno - 1, docstring.end_lineno))
    return "\n".join(line for i, line in enumerate(lines) if i not in dropped)
