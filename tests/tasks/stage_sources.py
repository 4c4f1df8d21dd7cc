"""Which core modules the body of a stage imports, found by reading the code of `tasks`.

Followed from the stage function: every function and class of `tasks` whose name its code mentions,
also as an annotation of a local variable.
"""

import ast
import functools
import importlib
from dataclasses import dataclass
from pathlib import Path

import tasks

FOLDER = Path(tasks.__file__).parent
# Whose answers the key holds as values; and what only stores a result under its hash.
NOT_FOLLOWED = {
    ("tasks.models.job", "Job"),
    ("tasks.stages.calibrate", "calibration_length"),
    ("tasks.models.subjects", "Subject"),  # counts the opener of each model itself
    ("tasks.engine.artifacts", "publish"),
    ("tasks.engine.artifacts", "publish_json"),
    ("tasks.engine.artifacts", "ArtifactRef"),
    ("tasks.engine.environment", "state_root"),  # where results lie, not what they are
}
CORE = "normtweak_core."


@dataclass(frozen=True)
class DeclaredStage:
    """A function declared with `@task(**STAGE)`, and the constant that names its sources."""

    module: str
    function: str
    constant: str

    def sources(self) -> list[str]:
        return getattr(importlib.import_module(self.module), self.constant)


CONSTANTS = {
    "export_stage": "EXPORT_SOURCES",
    "verify_stage": "VERIFY_SOURCES",
    "finetune_export_stage": "EXPORT_SOURCES",
}


def declared_stages() -> list[DeclaredStage]:
    found = []
    for path in sorted(FOLDER.rglob("*.py")):
        module = ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts)
        for name, node in _definitions(module).items():
            if any("**STAGE" in ast.unparse(one) for one in node.decorator_list):
                found.append(DeclaredStage(module, name, CONSTANTS.get(name, "SOURCES")))
    return found


def core_modules_of(stage: DeclaredStage) -> set[str]:
    """Return the core modules that a stage imports names from, itself or through `tasks`."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set(NOT_FOLLOWED)
    waiting = [(stage.module, stage.function)]
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        module, name = place
        node = _definitions(module).get(name)
        if node is None:  # a constant
            continue
        imported = _imported(_tree(module).body) | _imported(ast.walk(node))
        for mentioned in _names(node):
            origin = imported.get(mentioned, module)
            if origin.startswith(CORE):
                found.add(_module(origin, mentioned))
            elif origin.startswith("tasks."):
                waiting.append((origin, mentioned))
    return found


def _module(origin: str, name: str) -> str:
    """Return the module that `from origin import name` runs: `name` may be one itself."""
    inner = FOLDER.parent.joinpath(*origin.split("."), f"{name}.py")
    return f"{origin}.{name}" if inner.is_file() else origin


def _names(node: ast.AST) -> set[str]:
    """Names in the body and in annotations of local variables; not in a function's signature."""
    body = node.body if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
    found: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.FunctionDef):
            found |= _names(statement)
            continue
        for part in ast.walk(statement):
            if isinstance(part, ast.Name):
                found.add(part.id)
            elif isinstance(part, ast.ImportFrom):  # imported in the body: run, used or not
                found |= {alias.asname or alias.name for alias in part.names}
    return found


def _imported(nodes) -> dict[str, str]:
    """Return the module that each name of a `from ... import` comes from."""
    return {
        alias.asname or alias.name: node.module
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def _definitions(module: str) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: node for node in _tree(module).body if isinstance(node, kinds)}


@functools.cache
def _tree(module: str) -> ast.Module:
    path = FOLDER.parent / f"{module.replace('.', '/')}.py"
    return ast.parse(path.read_text() if path.is_file() else "")
