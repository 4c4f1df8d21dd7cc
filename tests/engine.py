"""The engine of the tests: one state root and one Prefect server for all tests of a process.

Making Prefect's database takes ten seconds of a core. It is made once for all processes of a test
run; every state root that a test needs a server on starts from a copy.
"""

import contextlib
import importlib
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.engine.environment import FOLDERS, OUR_LOGGERS, default_variables
from tasks.engine.locks import exclusive
from tasks.server.api import EmbeddedServer, api_for_this_run, remember_migration

if TYPE_CHECKING:
    from prefect.client.schemas.objects import Artifact

DATABASE = Path("prefect") / "prefect.db"


def with_database(root: Path, migrated: Path) -> Path:
    """Make the folders of a state root, with a copy of the migrated database; return the root."""
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    copy_database(migrated, root / DATABASE)
    remember_migration(root / DATABASE)
    return root


def copy_database(source: Path, to: Path) -> None:
    """Copy a database with all that is written to it, whichever file holds that."""
    with (
        contextlib.closing(sqlite3.connect(source)) as read,
        contextlib.closing(sqlite3.connect(to)) as written,
    ):
        read.backup(written)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A database of Prefect's with its tables and nothing in it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "migrated"
    folder.mkdir(exist_ok=True)
    with exclusive(folder / "lock", timeout=180, message="the database of the tests is being made"):
        finished = folder / "prefect.db"
        if not finished.exists():
            root = folder / "state"
            with pytest.MonkeyPatch.context() as patch:
                for name, value in default_variables(root).items():
                    patch.setenv(name, value)
                for place in FOLDERS:
                    (root / place).mkdir(parents=True, exist_ok=True)
                server = EmbeddedServer(root)
                server.start()
                server.wait()
                server.stop()
            copy_database(root / DATABASE, folder / "copy.db")
            (folder / "copy.db").rename(finished)
    return finished


@pytest.fixture(scope="session")
def engine_environment(
    migrated_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """The state root of the session, with the environment set; torch may be imported already.

    Before any test, whichever file a process gets first, and Prefect with it: it reads its
    environment once, when it is imported, and some tests set another one for a while.
    """
    root = tmp_path_factory.mktemp("engine") / "state"
    with_database(root, migrated_database)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        for name, value in default_variables(root).items():
            patch.setenv(name, value)
        for name in OUR_LOGGERS:
            logging.getLogger(name).setLevel(logging.INFO)
        importlib.import_module("prefect")
        yield root


@pytest.fixture(scope="session")
def session_api(engine_environment: Path) -> Iterator[str]:
    """The URL of a Prefect API on the root of the session."""
    with api_for_this_run(engine_environment) as url:
        yield url


@pytest.fixture(scope="module")
def home(engine_environment: Path, session_api: str) -> Iterator[Path]:
    """The state root of the session, with a Prefect API, for runs that a file's tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTWEAK_HOME", str(engine_environment))
        yield engine_environment


@pytest.fixture
def engine(engine_environment: Path, session_api: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state root of the session, with a Prefect API set for this process."""
    monkeypatch.setenv("NORMTWEAK_HOME", str(engine_environment))
    return engine_environment


def artifacts_of(flow_run_id: object) -> "dict[str, Artifact]":
    """Return what the page of a run shows, by its key."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter

    chosen = ArtifactFilter(flow_run_id={"any_": [flow_run_id]})
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=chosen)
    assert len({one.key for one in found}) == len(found)
    return {one.key: one for one in found}
