"""What the packages promise about their own shape: `python -m tests.house`, also in `make check`.

Exit code 0 where every number is at most its ceiling: its goal, or what `CEILINGS` holds, the
number of the day it was last lowered. These only go down, and leave when the goal is met. With
`--all` it prints every place.
"""

import ast
import io
import keyword
import sys
import token
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "tasks", "normtweak_core")
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
FEWEST = 8  # lines that two places may not share
SILENT = {token.NEWLINE, token.NL, token.COMMENT, token.INDENT, token.DEDENT, token.ENDMARKER}

GOALS = {
    "files longer than 350 lines": 0,
    "functions longer than 60 lines": 0,
    "folders of more than 16 files": 0,
    "modules in import circles": 0,
    "imports inside functions": 40,
    "places that share eight lines": 0,
    "README longer than 149 lines": 0,
}
CEILINGS: dict[str, int] = {}


@dataclass
class Source:
    """A module of the packages."""

    path: str  # from the root of the repository
    text: str
    tree: ast.Module = field(init=False)

    def __post_init__(self):
        self.tree = ast.parse(self.text)

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    @property
    def functions(self) -> list[FUNCTIONS]:
        return [node for node in ast.walk(self.tree) if isinstance(node, FUNCTIONS)]


def sources(root: Path = ROOT) -> list[Source]:
    files = sorted(file for name in PACKAGES for file in (root / name).rglob("*.py"))
    return [Source(file.relative_to(root).as_posix(), file.read_text()) for file in files]


def findings(house: list[Source], readme: str) -> dict[str, list[str]]:
    """Return, by the names of `GOALS`, the places that each counts."""
    length = len(readme.splitlines())
    return {
        "files longer than 350 lines": [
            f"{one.path}: {n}" for one in house if (n := len(one.text.splitlines())) > 350
        ],
        "functions longer than 60 lines": [
            f"{one.path}:{node.lineno} {node.name}: {n}"
            for one in house
            for node in one.functions
            if (n := node.end_lineno - node.lineno + 1) > 60
        ],
        "folders of more than 16 files": list(_full_folders(house)),
        "modules in import circles": _in_circles(house),
        "imports inside functions": [place for one in house for place in _hidden_imports(one)],
        "places that share eight lines": shared_lines(house),
        "README longer than 149 lines": [f"README.md: {length}"] if length >= 150 else [],
    }


def _full_folders(house: list[Source]) -> Iterator[str]:
    """A package's `__init__` is its door, not one of its files."""
    files = Counter(
        one.path.rpartition("/")[0] for one in house if not one.path.endswith("__init__.py")
    )
    return (f"{folder}: {count}" for folder, count in sorted(files.items()) if count > 16)


def _hidden_imports(one: Source) -> list[str]:
    inside = {
        node.lineno
        for function in one.functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return [f"{one.path}:{line}" for line in sorted(inside)]


def _in_circles(house: list[Source]) -> list[str]:
    """Return the modules from which imports, also those that come later, lead back to them."""
    paths = {one.module: one.path for one in house}
    imports = {}
    for one in house:
        named = set()
        for node in ast.walk(one.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy":
                named |= {one.value for one in node.args if isinstance(one, ast.Constant)}
        imports[one.module] = named & paths.keys() - {one.module}

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            new = imports[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    return [paths[module] for module in imports if module in reached(module)]


def shared_lines(house: list[Source]) -> list[str]:
    """Return pairs of places with eight or more lines of code that are equal or of one shape.

    Blank lines, comments, docstrings and imports are no code. Two places have one shape where other
    names, numbers and texts make one into the other; asked of functions, since fields and tables
    are declarations, which look alike wherever there are several.
    """
    alike: dict[tuple, list[tuple[int, int]]] = defaultdict(list)
    lines: list[list[int]] = []  # of every stretch: the numbers of its lines in its file
    files: list[str] = []
    for one in house:
        for shape, stretch in ((False, _code(one)), (True, _code(one, bodies_only=True))):
            for start in range(len(stretch) - FEWEST + 1):
                window = [tokens for _, tokens in stretch[start : start + FEWEST]]
                alike[shape, _form(window, shape)].append((len(lines), start))
            lines.append([number for number, _ in stretch])
            files.append(one.path)
    pairs = set()
    for places in alike.values():
        for i, (one, start) in enumerate(places):
            # A stretch that repeats itself, such as a list of calls, is no second place.
            pairs |= {
                (one, start, other, there)
                for other, there in places[i + 1 :]
                if one != other or there - start >= FEWEST
            }
    return sorted(set(_told(pairs, lines, files)))


def _told(pairs: set[tuple], lines: list[list[int]], files: list[str]) -> Iterator[str]:
    """Join windows that follow each other; what is equal is told once, as of one shape."""
    for one, start, other, there in pairs:
        if (one, start - 1, other, there - 1) in pairs:
            continue
        more = 0
        while (one, start + more + 1, other, there + more + 1) in pairs:
            more += 1
        ends = start + more + FEWEST - 1, there + more + FEWEST - 1
        yield (
            f"{files[one]}:{lines[one][start]}-{lines[one][ends[0]]} and "
            f"{files[other]}:{lines[other][there]}-{lines[other][ends[1]]}"
        )


def _code(one: Source, bodies_only: bool = False) -> list[tuple[int, list[tokenize.TokenInfo]]]:
    """Return the numbers and tokens of the lines of code, or of those inside functions."""
    left_out = set()
    if bodies_only:
        left_out = set(range(1, one.text.count("\n") + 2))
        for node in one.functions:
            left_out -= set(range(node.lineno, node.end_lineno + 1))
    for node in ast.walk(one.tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
    lines = defaultdict(list)
    for found in tokenize.generate_tokens(io.StringIO(one.text).readline):
        if found.type not in SILENT and found.start[0] not in left_out:
            lines[found.start[0]].append(found)
    return sorted(lines.items())


def _form(window: list[list[tokenize.TokenInfo]], shape: bool) -> int:
    """Return what equal windows have in common; of a shape, names count by where they recur."""
    names: dict[str, int] = {}
    form: list[str | int] = []
    for tokens in window:
        for found in tokens:
            if not shape or found.type == token.OP or keyword.iskeyword(found.string):
                form.append(found.string)
            elif found.type == token.NAME:
                form.append(names.setdefault(found.string, len(names)))
            else:
                form.append(token.tok_name[found.type])
        form.append("\n")
    return hash(tuple(form))


def excesses(found: dict[str, list[str]]) -> list[str]:
    """Return a text for every number above its ceiling, with its places."""
    ceilings = GOALS | CEILINGS
    return [
        f"{name}: {len(places)}, at most {ceilings[name]} allowed\n  " + "\n  ".join(places)
        for name, places in found.items()
        if len(places) > ceilings[name]
    ]


def main() -> int:
    found = findings(sources(), (ROOT / "README.md").read_text())
    for name, goal in GOALS.items():
        ceiling = CEILINGS.get(name, goal)
        lower = f": lower its ceiling, {ceiling}" if goal < ceiling > len(found[name]) else ""
        print(f"{name}: {len(found[name])} (goal {goal}){lower}")
        if "--all" in sys.argv:
            print("".join(f"  {place}\n" for place in found[name]), end="")
    over = excesses(found)
    print("".join(f"\n{text}" for text in over))
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
