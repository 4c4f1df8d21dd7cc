"""When a stage may be skipped: its key, and how Prefect stores and checks its result.

The key of a stage (`tasks.engine.stage`) is the parameter `key` of its task; nothing else about a
task call takes part in caching. Results are subclasses of `tasks.engine.artifacts.Result`.
"""

import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType
from typing import Any, Literal

from prefect.cache_policies import CacheKeyFnPolicy
from prefect.serializers import Serializer
from prefect.transactions import IsolationLevel
from pydantic import BaseModel

from tasks.engine.artifacts import Result
from tasks.engine.environment import state_root
from tasks.engine.locks import FlockLockManager

CORE = ("normtweak_core",)
OURS = (*CORE, "tasks")
VERSIONED = ("torch", "transformers")
# Modules of `tasks` in which no result is decided: what they say is a value of the key already, or
# they store, lock and tell. All others count for the stages that import them.
OPERATING = {
    "tasks.engine.stage", "tasks.models.work",
    "tasks.engine.artifacts", "tasks.engine.caching", "tasks.engine.environment",
    "tasks.engine.events", "tasks.models.job", "tasks.engine.live_page",
    "tasks.engine.locks", "tasks.engine.progress", "tasks.engine.log_files",
    "tasks.server.ranks", "tasks.server.watch",
}  # fmt: skip


IMPORT = dis.opmap["IMPORT_NAME"]
_NAME = re.compile(r"(normtweak_core|tasks)(\.\w+)+")


class CacheKeyError(BaseException):
    """A task has no usable cache key.

    Not an `Exception`, because Prefect catches those while it computes a key, logs a line and runs
    the task uncached: a run that can never be resumed would look like one that can.
    """


def stage_key(
    name: str,
    *,
    parents: Any,
    inputs: dict[str, Any],
    sources: Iterable[str],
    device: str,
    threads: int,
    shared: dict[str, Any] | None = None,
) -> str:
    """Return the cache key of one execution of a stage: equal keys mean equal bytes.

    Args:
        name: Name of the stage; it starts the key.
        parents: Content hashes of the results this stage is made from, by what they are.
        inputs: What else it reads: recipe fields, weight hashes. Plain values or pydantic models;
            never a path, a name given by the user, a run id or a time.
        sources: Modules in which the code of the stage begins; what they import is followed.
        device: "cpu" or "cuda:0"; only the type counts.
        threads: Threads that share the arithmetic; their number changes the order of sums.
        shared: Facts that all stages of a job have in common, of the same kinds as inputs.

    Raises:
        TypeError: An input is none of the kinds above, for example a path.
        ValueError: A name is given twice, so that one of the two would not count.
    """
    common = {"device": device.split(":")[0], "threads": threads}
    for given in (shared or {}, inputs):
        if twice := sorted(common.keys() & given.keys()):
            raise ValueError(
                f"every name in the key of {name} must be given once; {', '.join(twice)} is a fact "
                "that its job shares already: give the stage's own input another name"
            )
        common |= shared or {}
    facts = {
        "stage": name,
        "parents": parents,
        "shared": _plain(common, "shared"),
        "inputs": _plain(inputs, "inputs"),
        "sources": source_fingerprint(tuple(sources)),
    }
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()}"


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{where} must have text as keys to make a cache key; found {value!r}")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"{where} must be text, a number, a list, a mapping or a pydantic model to make a cache "
        f"key; found {type(value).__name__}. Pass a content hash instead."
    )


@functools.cache
def source_fingerprint(modules: tuple[str, ...]) -> str:
    """Return one hash for the code a stage runs and the versions of what it computes with.

    Reads source files and package metadata; imports nothing.

    Raises:
        ModuleNotFoundError: A named module has no source file.
    """
    hashes = source_hashes(modules)
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    text = json.dumps([hashes, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def source_hashes(modules: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of every source file that modules reach through imports, by module.

    Imports inside functions count, and modules that are named by a text, such as lazy ones; what is
    launched by its path does not and has to be named.

    Raises:
        ModuleNotFoundError: A named module has no source file.
    """
    hashes: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in hashes:
            continue
        hashes[name], imported = _read_source(name)
        waiting += imported
    return hashes


@functools.cache
def _read_source(name: str) -> tuple[str, list[str]]:
    """Return the SHA-256 of a module's file, and the modules of ours that it imports."""
    file = _source_file(name)
    if file is None:
        raise ModuleNotFoundError(f"A stage names {name} as its source; no such module exists.")
    source = file.read_bytes()
    imported = [
        found
        for found in _imported(source, name, file.name == "__init__.py")
        if found.split(".")[0] in {*OURS, name.split(".")[0]}
        and found not in OPERATING
        and _source_file(found) is not None
    ]
    return hashlib.sha256(source).hexdigest(), imported


def _imported(source: bytes, name: str, is_package: bool) -> Iterable[str]:
    """Yield every name an import may mean, packages on the way included."""
    # Not by `ast`: two threads that build syntax trees at once can end in a SystemError (seen with
    # CPython 3.11.7 while the embedded server was being imported).
    waiting = [compile(source, name, "exec", dont_inherit=True)]
    while waiting:
        code = waiting.pop()
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        yield from (one for one in code.co_consts if isinstance(one, str) and _NAME.fullmatch(one))
        if IMPORT not in code.co_code[::2]:
            continue
        steps = [one for one in dis.get_instructions(code) if one.opname != "EXTENDED_ARG"]
        for i, step in enumerate(steps):
            if step.opname != "IMPORT_NAME":
                continue
            level, names = steps[i - 2].argval, steps[i - 1].argval or ()
            parts = name.split(".")
            base = parts[: len(parts) - level + is_package] if level else []
            base += step.argval.split(".") if step.argval else []
            # `from a import b` may mean the module a.b or a name inside a.
            for full in [[*base, one] for one in names] or [base]:
                yield from (".".join(full[: i + 1]) for i in range(len(full)))


def module_exists(name: str) -> bool:
    """Tell whether a module has a source file here; imports nothing."""
    return _source_file(name) is not None


@functools.cache
def _source_file(name: str) -> Path | None:
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)  # of a top-level name: executes nothing
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    if not rest and not folders:
        return Path(spec.origin) if spec.origin else None
    for folder in folders:
        path = folder.joinpath(*rest)
        for candidate in (path / "__init__.py", path.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    return None


class StagePolicy(CacheKeyFnPolicy):
    """Prefect's policy for a key function whose failure is an error."""

    def compute_key(
        self,
        task_ctx: Any,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str:
        """Return the key.

        Raises:
            CacheKeyError: The key function failed or gave no text.
        """
        name = task_ctx.task.name
        try:
            key = self.cache_key_fn(task_ctx, inputs)
        except Exception as error:
            raise CacheKeyError(
                f"Task {name} needs a cache key; computing it failed: {error!r}"
            ) from error
        if not isinstance(key, str) or not key:
            raise CacheKeyError(f"Task {name} needs a cache key; found {key!r}")
        _remove_foreign_record(key)
        return key


def stage_policy(
    key_fn: Callable[[Any, dict[str, Any]], str] | None = None, root: Path | None = None
) -> StagePolicy:
    """Return the cache policy of a stage: one execution per key, also among several processes.

    Args:
        key_fn: Takes (task context, parameters) and returns the key; None: the parameter `key`.
        root: State root; None: read from the environment when the first lock is taken.
    """
    # No key_storage: with one, Prefect only looks whether a key was recorded and never opens the
    # result, so that a truncated artefact counts as cached.
    return StagePolicy(cache_key_fn=key_fn or _key_parameter).configure(
        isolation_level=IsolationLevel.SERIALIZABLE,
        lock_manager=FlockLockManager(root / "locks" / "stages" if root else _stage_locks),
    )


def _key_parameter(context: Any, parameters: dict[str, Any]) -> str:
    return parameters["key"]


def _stage_locks() -> Path:
    return state_root() / "locks" / "stages"


class StageSerializer(Serializer):
    """A result as checked JSON: whatever byte of the record is altered, reading it fails.

    Prefect's JSON serializer gives back a plain mapping where it cannot import the class, and
    cannot notice a changed digit.
    """

    type: Literal["normtweak-stage"] = "normtweak-stage"

    def dumps(self, obj: BaseModel) -> bytes:
        """Return a digest, a line feed, and the class and values as JSON."""
        kind, where = type(obj), _name_of(type(obj))
        if kind not in Result.__subclasses__() or kind.__module__ == "__main__" or "<" in where:
            raise TypeError(f"A stage must return a Result declared in a module; found {where}.")
        text = json.dumps(
            {"class": where, "data": obj.model_dump(mode="json")}, sort_keys=True, allow_nan=False
        )
        return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()

    def loads(self, blob: bytes) -> BaseModel:
        """Return the result after validating it, and with it every file it refers to.

        The class is one that the modules of the stages have declared: a record imports nothing.

        Raises:
            ValueError: The record was altered, names another class, or a file it refers to is not
                what it was.
        """
        digest, _, text = blob.partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise ValueError("a stage record must match its own SHA-256; this one was altered")
        record = json.loads(text)
        known = {_name_of(kind): kind for kind in Result.__subclasses__()}
        if record["class"] not in known:
            raise ValueError(f"a stage record must hold a result; found {record['class']}")
        return known[record["class"]].model_validate(record["data"])


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def cached_result(key: str) -> BaseModel | None:
    """Return the valid stored result of a stage, or None where it would run; changes nothing."""
    try:
        record = json.loads(_record_path(key).read_bytes())
        return StageSerializer().loads(record["result"].encode())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _record_path(key: str) -> Path:
    return state_root() / "results" / key


def _remove_foreign_record(key: str) -> None:
    """Remove a record that Prefect would read by anything else than our serializer.

    Prefect reads by what the record names: by pickle, say, or by a JSON decoder that it imports.
    """
    path = _record_path(key)
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):  # Prefect gives what is no JSON to our serializer
        return
    metadata = record.get("metadata") if isinstance(record, dict) else None
    ours = isinstance(metadata, dict) and metadata.get("serializer") == _SERIALIZER
    if not ours or record.keys() != {"metadata", "result"}:
        path.unlink(missing_ok=True)


_SERIALIZER = StageSerializer().model_dump()
