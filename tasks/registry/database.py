"""The registry's own file, whole or absent.

MLflow makes its tables in a hundred steps. Ended between two of them, it leaves a file that it
neither uses nor finishes: every later run ends with "duplicate column name".
"""

import contextlib
import os

from normtweak_core.lazy import lazy
from tasks.engine.artifacts import temporary_beside
from tasks.engine.environment import state_root
from tasks.engine.locks import exclusive
from tasks.engine.root_layout import LOCKS, MLARTIFACTS
from tasks.registry.reachable import sqlite_file

stores = lazy("mlflow.store.tracking.sqlalchemy_store")

IN_MEMORY = ("sqlite://", "sqlite:///:memory:")


def make_database(uri: str) -> None:
    """Make the database of a tracking URI, where that names a sqlite file that is not there yet.

    Of processes that ask at once, one makes it.
    """
    if not uri.startswith("sqlite:") or uri in IN_MEMORY or (file := sqlite_file(uri)).exists():
        return
    root = state_root()
    lock = root / LOCKS / "registry-database.lock"
    with exclusive(lock, message="another run makes the database of the registry"):
        if file.exists():
            return
        temporary = temporary_beside(file)
        try:
            store = stores.SqlAlchemyStore(f"sqlite:///{temporary}", str(root / MLARTIFACTS))
            store.engine.dispose()
            os.replace(temporary, file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
