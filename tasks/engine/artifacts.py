"""Files that tasks exchange by reference: whole or absent, and checked whenever a cache is read.

A task result holds `ArtifactRef`s. Loading a cached result validates them, and Prefect takes any
error there for a cache miss, so that a missing, truncated or altered file is simply made again.
Files are named after their content: two writers of the same thing write the same bytes.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from normtweak_core.export import payload
from normtweak_core.file_memo import FileMemo
from normtweak_core.lazy import lazy
from tasks.engine import events
from tasks.engine.environment import REBUILDS, state_root
from tasks.engine.locks import create_locked, held, remove_if_free
from tasks.engine.root_layout import HASHES

if TYPE_CHECKING:
    from torch import Tensor

safetensors = lazy("safetensors.torch")

FOLDER = "artifacts"
WRITERS = "writers"  # one lock file per process that writes, held for its lifetime

# Marks a field of a result that differs between two equal executions, such as a duration:
# `seconds: Annotated[float, NOT_CONTENT]`. Keys of later stages do not depend on it.
NOT_CONTENT = "not content"

SHA256 = "sha256"  # what is remembered of a file, beside what others ask for

_memos: dict[Path, FileMemo] = {}  # by state root
_writers: dict[tuple[int, Path], str] = {}  # (pid, state root) -> token of its writer lock
_TEMPORARY = re.compile(r"\.tmp-(?P<token>[0-9a-f]{32})-[0-9a-f]{32}")
_writer_mutex = threading.Lock()


class Result(BaseModel, frozen=True):
    """What a stage returns. Only a subclass whose module is loaded is read back from a record."""

    @property
    def identity(self) -> str:
        """What it is to the key of what is made from it."""
        return content_hash(self)

    def facts(self) -> dict[str, str]:
        """Return what the report and the registry say of it, by short names."""
        return {}


class ArtifactRef(BaseModel):
    """A file under the state root that is known to hold exactly these bytes.

    Raises:
        ValueError: At validation, when the file is missing or holds anything else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, NOT_CONTENT] = Field(description="Relative to the state root.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @classmethod
    def to(cls, path: Path) -> Self:
        """Return a reference to a complete file that lies under the state root."""
        status = path.stat()
        relative = path.resolve().relative_to(state_root()).as_posix()
        return cls(path=relative, size=status.st_size, sha256=file_sha256(path))

    @model_validator(mode="after")
    def _holds_these_bytes(self) -> Self:
        pure = PurePosixPath(self.path)
        if pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"{self.path} must be a path inside the state root; it leads outside")
        path = state_root() / self.path
        try:
            status = path.stat()
        except OSError as error:
            raise ValueError(f"{self.path} is missing ({error.strerror}); make it again") from error
        if not stat.S_ISREG(status.st_mode) or status.st_size != self.size:
            raise ValueError(
                f"{self.path} must be a file of {self.size} bytes, found {status.st_size}; "
                "make it again"
            )
        if (found := file_sha256(path)) != self.sha256:
            raise ValueError(
                f"{self.path} must have SHA-256 {self.sha256[:12]}…, found {found[:12]}…; "
                "make it again"
            )
        return self


def publish(kind: str, key: str, write: Callable[[Path], None], suffix: str) -> ArtifactRef:
    """Return a reference to what `write` wrote, once it is whole, on disk and in its place.

    A kill at any moment leaves at most a temporary file, which `sweep_temporaries` removes.

    Args:
        kind: Folder under artifacts/, for example "blocks".
        key: Cache key of the stage that publishes; recorded in the event file.
        write: Writes the file at the path it is given (in the final folder, with the suffix).
        suffix: Ending of the name, with or without its dot.
    """
    folder = state_root() / FOLDER / kind
    folder.mkdir(parents=True, exist_ok=True)
    ending = f".{suffix.lstrip('.')}"
    temporary = temporary_beside(folder / f"any{ending}")
    try:
        write(temporary)
        _fsync(temporary)
        digest = file_sha256(temporary)
        final = folder / f"{digest[:32]}{ending}"
        # Replace even what is there: it may have the right name and altered bytes.
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(folder)
    _memo().keep(final, SHA256, digest)
    size = final.stat().st_size
    reference = ArtifactRef(path=f"{FOLDER}/{kind}/{final.name}", size=size, sha256=digest)
    events.record("published", kind=kind, key=key, path=reference.path, sha256=digest)
    return reference


def publish_tensors(kind: str, key: str, tensors: "Mapping[str, Tensor]") -> ArtifactRef:
    """Return a reference to a safetensors file whose bytes depend on names and values only."""
    stored = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def write(path: Path) -> None:
        safetensors.save_file(stored, path, metadata={"format": "pt"})

    return publish(kind, key, write, "safetensors")


def publish_json(kind: str, key: str, value: Any) -> ArtifactRef:
    """Return a reference to a JSON file whose bytes depend on the value only."""
    text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n"
    return publish(kind, key, lambda path: path.write_text(text, encoding="utf-8"), "json")


def read_json(reference: ArtifactRef) -> Any:
    """Return what a published JSON file holds."""
    return json.loads((state_root() / reference.path).read_text(encoding="utf-8"))


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all, replacing what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(data)
        _fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(path.parent)


def temporary_beside(path: Path) -> Path:
    """Return an unused path in the same folder, with the same suffix, to write to and rename.

    For a file or a folder; whatever lies there when this process is gone is swept away.
    """
    return path.with_name(f".tmp-{_writer_token()}-{uuid.uuid4().hex}{path.suffix}")


def sweep_temporaries(root: Path | None = None) -> list[Path]:
    """Remove the temporary files and folders of dead processes and return their paths."""
    root = root or state_root()
    locks = root / "locks" / WRITERS
    removed = []
    found = [Path(at) / name for at, folders, files in _walk(root) for name in folders + files]
    for path in sorted(found):
        match = _TEMPORARY.match(path.name)
        if match is None or held(locks / f"{match['token']}.lock"):
            continue
        if path.is_dir():
            with contextlib.suppress(FileNotFoundError):  # its owner's successor was faster
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    for path in [*locks.glob("*.lock"), *locks.glob(".new-*")]:
        remove_if_free(path)
    return removed


def _walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield the folders of a state root, without those of the rebuilds, whose locks lie there."""
    # os.walk passes over folders that another run renames or removes meanwhile; rglob fails there.
    for at, folders, files in os.walk(root):
        if at == str(root):
            folders[:] = [name for name in folders if name != REBUILDS]
        yield at, folders, files


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hashed again only if it may have changed: see `remembered`."""
    return remembered(path, SHA256, payload.file_sha256)


def remembered(path: Path, what: str, read: Callable[[Path], Any]) -> Any:
    """Return what reading a whole file gives, done once a run and kept for other runs.

    What `FileMemo` cannot see is taken for unchanged, so whoever vouches for bytes reads them
    himself: the verification of an export, its registration, a rebuild.

    Args:
        path: Of the file.
        what: Name of the value; it changes whenever ``read`` does.
        read: Returns plain data.
    """
    return _memo().of(path, what, read)


def keep_hashes() -> None:
    """Write down from now on what is remembered of files; a plan does not, it writes nothing."""
    _memo().write_down()


def _memo() -> FileMemo:
    root = state_root()
    if root not in _memos:
        _memos[root] = FileMemo(root / HASHES)
    return _memos[root]


def content_hash(result: BaseModel) -> str:
    """Return what a result is, as SHA-256: hashes and values, not paths, times or other accidents.

    Fields marked `NOT_CONTENT` are left out, at any depth.
    """
    text = json.dumps(_content(result), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _content(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {
            name: _content(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if NOT_CONTENT not in field.metadata
        }
    if isinstance(value, dict):
        return {str(key): _content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_content(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"A result may hold models, mappings, sequences, text and numbers; found {type(value)}."
    )


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _writer_token() -> str:
    """Return the name of this process's writer lock, which it holds until it ends."""
    with _writer_mutex:
        owner = os.getpid(), state_root()
        if owner not in _writers:
            token = uuid.uuid4().hex
            create_locked(state_root() / "locks" / WRITERS / f"{token}.lock")
            _writers[owner] = token
        return _writers[owner]
