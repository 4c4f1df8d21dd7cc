import asyncio
import copy
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.engine.locks import (
    FlockLockManager,
    LockTimeoutError,
    create_locked,
    exclusive,
    held,
    remove_if_free,
    try_lock,
)
from tests.tasks.conftest import wait_until

HOLD = """
import sys, time
from pathlib import Path
from tasks.engine.locks import exclusive
with exclusive(Path(sys.argv[1])):
    time.sleep(120)
"""

ADD = """
import sys
from pathlib import Path
from tasks.engine.locks import exclusive
counter = Path(sys.argv[2])
for _ in range(200):
    with exclusive(Path(sys.argv[1])):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_a_kill_frees_the_lock_and_until_then_it_keeps_others_out(program, tmp_path):
    path = tmp_path / "chain.lock"
    holder = program("-c", HOLD, str(path))
    holder.until(lambda: held(path))
    holder.until(lambda: path.read_text())
    expected = f"the chain: needed, but process {holder.process.pid} held it for 0.1 s; wait for"
    with pytest.raises(LockTimeoutError, match=expected), exclusive(path, 0.1, "the chain"):
        pass
    holder.process.kill()
    holder.process.wait()
    assert not held(path)
    with exclusive(path, timeout=0):
        assert held(path)


def test_processes_never_interleave_inside_a_lock(program, tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    adders = [program("-c", ADD, str(tmp_path / "lock"), str(counter)) for _ in range(2)]
    for adder in adders:
        adder.finish()
    assert counter.read_text() == "400"


def test_waiting_is_announced_once_with_its_reason(tmp_path, caplog):
    path = tmp_path / "gpu.lock"
    fd = create_locked(path)
    threading.Timer(0.3, os.close, [fd]).start()
    with caplog.at_level("INFO"), exclusive(path, 5, "the GPU is busy"):
        pass
    waited = [r.getMessage() for r in caplog.records if "the GPU is busy" in r.getMessage()]
    assert waited == ["Waiting for process (unknown): the GPU is busy"]


def test_a_lock_file_is_removed_only_by_who_holds_it(tmp_path):
    path = tmp_path / "a.lock"
    fd = create_locked(path)
    assert not remove_if_free(path)
    os.close(fd)
    assert remove_if_free(path)
    assert not path.exists()
    assert not held(path)
    assert not remove_if_free(path)


def test_a_descriptor_of_a_removed_file_does_not_count_as_the_lock(tmp_path, monkeypatch):
    path = tmp_path / "a.lock"
    real_flock = __import__("fcntl").flock
    removed = []

    def removed_before_locked(fd, kind):
        if not removed:
            removed.append(path.unlink())
        real_flock(fd, kind)

    monkeypatch.setattr("fcntl.flock", removed_before_locked)
    fd = try_lock(path)
    assert os.fstat(fd).st_ino == path.stat().st_ino
    os.close(fd)


def test_a_new_locked_file_is_never_seen_unlocked(tmp_path):
    seen_free = []
    done = threading.Event()

    def watch():
        while not done.is_set():
            for path in tmp_path.glob("*.lock"):
                fd = try_lock(path)
                if fd is not None:
                    seen_free.append(path)
                    os.close(fd)

    watcher = threading.Thread(target=watch)
    watcher.start()
    descriptors = [create_locked(tmp_path / f"{i}.lock") for i in range(200)]
    done.set()
    watcher.join()
    assert seen_free == []
    for fd in descriptors:
        os.close(fd)


def test_the_manager_keeps_holders_apart_within_a_process(tmp_path):
    manager = FlockLockManager(tmp_path)
    assert manager.acquire_lock("key", "a")
    assert manager.acquire_lock("key", "a")  # the holder may ask again
    assert not manager.acquire_lock("key", "b", acquire_timeout=0.1)
    assert manager.is_locked("key")
    assert manager.is_lock_holder("key", "a")
    assert not manager.is_lock_holder("key", "b")
    assert not manager.wait_for_lock("key", timeout=0.1)
    with pytest.raises(ValueError, match="b must hold the lock on key to release it; it does not"):
        manager.release_lock("key", "b")
    manager.release_lock("key", "a")
    assert not manager.is_locked("key")
    assert manager.wait_for_lock("key", timeout=0)


def test_the_manager_excludes_other_managers_on_the_same_folder(tmp_path):
    here, there = FlockLockManager(tmp_path), pickle.loads(pickle.dumps(FlockLockManager(tmp_path)))
    assert here.acquire_lock("key", "a")
    assert there.is_locked("key")
    assert not there.acquire_lock("key", "a", acquire_timeout=0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(there.acquire_lock, "key", "b")
        time.sleep(0.15)
        assert not waiting.done()
        here.release_lock("key", "a")
        assert waiting.result(5)
    there.release_lock("key", "b")


def test_the_manager_waits_without_blocking_the_event_loop(tmp_path):
    manager = FlockLockManager(tmp_path)

    async def two_holders():
        assert await manager.aacquire_lock("key", "a")
        second = asyncio.create_task(manager.aacquire_lock("key", "b", acquire_timeout=5))
        await asyncio.sleep(0.12)
        assert not await manager.await_for_lock("key", timeout=0.05)
        manager.release_lock("key", "a")
        assert await second
        manager.release_lock("key", "b")

    asyncio.run(two_holders())


def test_a_copied_policy_shares_its_manager(tmp_path):
    manager = FlockLockManager(lambda: tmp_path)
    assert copy.deepcopy({"manager": manager})["manager"] is manager
    assert manager.acquire_lock("key", "a")
    assert held(next(tmp_path.glob("*.lock")))
    manager.release_lock("key", "a")
    wait_until(lambda: not manager.is_locked("key"))
