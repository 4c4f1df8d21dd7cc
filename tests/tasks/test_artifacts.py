import json
import os
import shutil
import time
from typing import Annotated

import pytest
from pydantic import BaseModel, ValidationError

from normtweak_core.file_memo import SETTLED, WORTH_KEEPING
from normtweak_core.model.fingerprint import fingerprint
from tasks.engine import artifacts
from tasks.engine.artifacts import (
    NOT_CONTENT,
    ArtifactRef,
    content_hash,
    publish,
    publish_json,
    sweep_temporaries,
    temporary_beside,
    write_atomically,
)
from tasks.engine.environment import state_root
from tasks.engine.events import read_events
from tasks.models.job import model_fingerprint
from tests.tiny_exports import save_tiny_model, tiny_config

PUBLISH = """
import os, sys, time
from tasks.engine.artifacts import publish
def write(path):
    path.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(120)
publish("blocks", "key", write, "bin")
"""


class Block(BaseModel):
    codes: ArtifactRef
    parts: dict[str, list[ArtifactRef]]
    error: float
    seconds: Annotated[float, NOT_CONTENT] = 0.0


def opened(ref: ArtifactRef) -> bytes:
    """What lies at a reference that was read back from a stored result."""
    again = ArtifactRef.model_validate_json(ref.model_dump_json())
    return (state_root() / again.path).read_bytes()


def publish_bytes(data: bytes) -> ArtifactRef:
    return publish("blocks", "key", lambda path: path.write_bytes(data), "bin")


def test_published_bytes_come_back_under_a_name_made_of_their_hash(root):
    ref = publish_bytes(b"codes")
    assert opened(ref) == b"codes"
    assert ref.path == f"artifacts/blocks/{ref.sha256[:32]}.bin"
    assert ArtifactRef.model_validate_json(ref.model_dump_json()) == ref
    assert ArtifactRef.to(root / ref.path) == ref
    (event,) = read_events()
    assert (event["event"], event["kind"], event["key"]) == ("published", "blocks", "key")
    assert event["sha256"] == ref.sha256


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing .No such file or directory.; make it again"),
        (lambda path: path.write_bytes(b"code"), "must be a file of 5 bytes, found 4; make it"),
        (
            lambda path: path.write_bytes(b"codEs"),
            "must have SHA-256 [0-9a-f]{12}…, found [0-9a-f]",
        ),
    ],
)
def test_a_missing_truncated_or_altered_file_invalidates_its_reference(root, damage, message):
    ref = publish_bytes(b"codes")
    text = ref.model_dump_json()
    damage(root / ref.path)
    with pytest.raises(ValidationError, match=message):
        ArtifactRef.model_validate_json(text)
    assert publish_bytes(b"codes") == ArtifactRef.model_validate_json(text)


def test_every_single_flipped_byte_is_noticed(root):
    ref = publish_bytes(b"0123456789")
    for index in range(10):
        data = bytearray(b"0123456789")
        data[index] ^= 1
        (root / ref.path).write_bytes(data)
        with pytest.raises(ValidationError, match="SHA-256"):
            opened(ref)


def test_an_unchanged_file_is_hashed_once_and_a_changed_one_again(root, monkeypatch):
    ref = publish_bytes(b"codes")
    real = artifacts.hashlib.file_digest
    hashed = []
    monkeypatch.setattr(
        artifacts.hashlib, "file_digest", lambda *args: hashed.append(1) or real(*args)
    )
    for _ in range(3):
        opened(ref)
    assert hashed == []
    os.utime(root / ref.path, ns=(1, 1))
    opened(ref)
    opened(ref)
    assert hashed == [1]


def test_the_weights_of_a_model_are_read_once_and_written_down_by_runs_alone(
    root, tmp_path, monkeypatch
):
    folder = save_tiny_model(tmp_path / "model", tiny_config("llama", intermediate_size=2048))
    assert (folder / "model.safetensors").stat().st_size > WORTH_KEEPING
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 2 * SETTLED)
    expected = fingerprint(folder)
    assert model_fingerprint(folder) == expected
    assert not (root / "hashes.jsonl").exists()
    artifacts.keep_hashes()
    artifacts._memos.clear()  # as another process
    monkeypatch.setattr("normtweak_core.model.fingerprint._digest", lambda tensor: "read again")
    assert model_fingerprint(folder) == expected
    os.utime(folder / "model.safetensors")
    assert set(model_fingerprint(folder).tensors.values()) == {"read again"}


@pytest.mark.parametrize("path", ["/etc/hostname", "../outside", "artifacts/../../outside"])
def test_a_reference_cannot_lead_outside_the_root(root, path):
    with pytest.raises(ValidationError, match="must be a path inside the state root; it leads out"):
        ArtifactRef(path=path, size=0, sha256="0" * 64)


def test_a_failed_write_leaves_nothing(root):
    def write(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish("blocks", "key", write, ".bin")
    assert list((root / "artifacts" / "blocks").iterdir()) == []
    assert read_events() == []


def test_a_killed_writer_leaves_only_what_the_sweep_removes(root, program):
    writer = program("-c", PUBLISH, NORMTWEAK_HOME=str(root))
    writer.until(lambda: "writing" in writer.text())
    folder = root / "artifacts" / "blocks"
    own = temporary_beside(root / "exports" / "model")
    own.mkdir()
    (other,) = folder.iterdir()
    assert sweep_temporaries() == []  # both owners live
    writer.process.kill()
    writer.process.wait()
    stranger = root / "exports" / ".tmp-not-ours"
    stranger.touch()
    left = root / "exports" / f".tmp-{'0' * 32}-{'1' * 32}"
    left.mkdir()
    (left / "shard").touch()
    assert sorted(sweep_temporaries()) == sorted([other, left])
    assert (own.exists(), stranger.exists(), left.exists()) == (True, True, False)
    assert list(folder.iterdir()) == []


def test_a_folder_that_another_run_removes_during_the_sweep_is_passed_over(root, monkeypatch):
    going = root / "exports" / ".model.0123.partial"
    (going / "shards").mkdir(parents=True)
    left = root / "results" / f".tmp-{'0' * 32}-{'1' * 32}"
    left.touch()
    real = os.scandir

    def scandir(path="."):
        if str(path) == str(going):  # listed by its parent, and then gone
            shutil.rmtree(going)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert sweep_temporaries() == [left]
    assert not going.exists()


def test_two_writers_of_the_same_bytes_agree(root):
    first, second = publish_bytes(b"same"), publish_bytes(b"same")
    assert first == second
    assert len(list((root / "artifacts" / "blocks").iterdir())) == 1
    assert opened(first) == b"same"


def test_json_bytes_depend_on_the_value_only(root):
    first = publish_json("reports", "key", {"b": 1.5, "a": [1, None]})
    assert first == publish_json("reports", "other key", {"a": [1, None], "b": 1.5})
    assert json.loads(opened(first)) == {"a": [1, None], "b": 1.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish_json("reports", "key", {"a": float("nan")})


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(root):
    path = root / "exports" / "manifest.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_the_content_of_a_result_is_its_hashes_and_values_not_its_paths_and_durations(root):
    a, b = publish_bytes(b"a"), publish_bytes(b"b")
    block = Block(codes=a, parts={"norms": [b]}, error=0.5, seconds=1.0)
    moved = root / "artifacts" / "elsewhere.bin"
    moved.write_bytes(b"a")
    same = Block(codes=ArtifactRef.to(moved), parts={"norms": [b]}, error=0.5, seconds=2.0)
    assert content_hash(block) == content_hash(same)
    for other in (
        Block(codes=b, parts={"norms": [b]}, error=0.5),
        Block(codes=a, parts={"norms": [a]}, error=0.5),
        Block(codes=a, parts={"scales": [b]}, error=0.5),
        Block(codes=a, parts={"norms": [b]}, error=0.25),
    ):
        assert content_hash(block) != content_hash(other)


def test_a_result_with_something_else_in_it_has_no_content_hash(root):
    class Odd(BaseModel):
        what: bytes

    with pytest.raises(TypeError, match="A result may hold models, mappings, sequences, text and"):
        content_hash(Odd(what=b"x"))
