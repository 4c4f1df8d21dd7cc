import asyncio
import json
import os
import socket
import threading

import httpx
import psutil
import pytest

from tasks.engine.locks import LockTimeoutError, exclusive
from tasks.server import api as server
from tasks.server.api import (
    EmbeddedServer,
    ServerError,
    announce_server,
    api_for_this_run,
    running_server,
)

# Whichever test comes first also pays for the tables of Prefect's database.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def no_api(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def test_the_embedded_server_answers_and_is_on_this_machine_only(session_api):
    assert httpx.get(f"{session_api}/health").json() is True
    port = httpx.URL(session_api).port
    (listening,) = [
        connection
        for child in psutil.Process().children()
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    assert listening.laddr.ip == "127.0.0.1"


def test_this_process_and_its_children_use_it(session_api):
    from prefect.settings import PREFECT_API_URL

    assert PREFECT_API_URL.value() == os.environ["PREFECT_API_URL"] == session_api


def test_an_api_the_user_has_set_is_used_as_it_is(root, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with api_for_this_run(root) as url:
        assert url == "http://127.0.0.1:9/api"
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:9/api"


def test_a_running_ui_or_serve_is_used_while_it_lives(root, no_api):
    assert running_server(root) is None
    with announce_server(root, "http://127.0.0.1:10/api"):
        assert running_server(root) == "http://127.0.0.1:10/api"
        with api_for_this_run(root) as url:
            assert url == os.environ["PREFECT_API_URL"] == "http://127.0.0.1:10/api"
        assert "PREFECT_API_URL" not in os.environ
        with (
            pytest.raises(LockTimeoutError, match="only one normtweak ui or serve may run on"),
            announce_server(root, "http://127.0.0.1:11/api"),
        ):
            pass
    assert running_server(root) is None


def test_an_announcement_left_by_a_killed_server_is_not_believed(root):
    (root / "prefect" / "server.json").write_text(json.dumps({"api_url": "http://127.0.0.1:1"}))
    (root / "locks" / "server.lock").touch()
    assert running_server(root) is None


def test_a_server_that_ends_is_reported_with_the_end_of_its_log(root, no_api, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE", "many")
    monkeypatch.setenv("PREFECT_HOME", str(root / "prefect"))
    one = EmbeddedServer(root)
    one.start()
    with pytest.raises(
        ServerError, match=r"must come up, but it ended with exit code 1\. "
    ) as error:
        one.wait()
    assert "Last lines of" in str(error.value)
    assert "read_batch_size" in str(error.value).lower()
    assert one.child is None


def test_a_server_that_takes_too_long_is_reported_and_stopped(root, no_api, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(root / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "0.2")
    one = EmbeddedServer(root)
    one.start()
    child = psutil.Process(one.child.process.pid)
    with pytest.raises(ServerError, match=r"within 0\.2 s; give it longer with PREFECT_\w+\. See"):
        one.wait()
    assert not child.is_running()
    port = httpx.URL(one.url).port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_only_one_process_makes_the_tables_and_the_others_wait_for_it(root, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(root / "prefect"))
    database = root / "prefect" / "prefect.db"
    one, two = EmbeddedServer(root), EmbeddedServer(root)
    assert one._must_migrate()
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(two._must_migrate()))
    waiting.start()
    waiting.join(0.2)
    assert answers == []
    database.touch()
    server.remember_migration(database)
    one._migration.close()
    waiting.join(5)
    assert answers == [False]
    two.stop()

    # A database that was removed and made again has no tables; a new version may want others.
    database.rename(database.with_suffix(".old"))
    database.touch()
    assert one._must_migrate()
    server.remember_migration(database)
    one._migration.close()
    assert not one._must_migrate()
    monkeypatch.setattr(server.metadata, "version", lambda name: "9.9.9")
    assert one._must_migrate()
    one.stop()
    with exclusive(root / "locks" / "migration.lock", timeout=0):
        pass


def test_a_server_told_to_stop_first_handles_what_is_queued(session_api):
    from prefect.server.utilities.messaging.memory import MemoryMessage, Topic

    from tasks.server.api_child import _handle_queues

    subscription = Topic.by_name("test-events").subscribe()

    async def stop_with_messages_waiting() -> list[int]:
        for _ in range(3):
            await subscription.deliver(MemoryMessage(data=b"", attributes={}))
        stopping = asyncio.create_task(_handle_queues())
        left = []
        for _ in range(3):
            await asyncio.sleep(0.1)
            assert not stopping.done()
            await subscription.get()
            left.append(subscription._queue.qsize())
        await asyncio.wait_for(stopping, 1)
        return left

    try:
        assert asyncio.run(stop_with_messages_waiting()) == [2, 1, 0]
    finally:
        Topic.by_name("test-events").unsubscribe(subscription)
