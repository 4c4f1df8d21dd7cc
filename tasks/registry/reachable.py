"""Whether a registry can be worked with, asked before anything slow is done for it; no MLflow."""

import importlib.util
import os
from pathlib import Path
from urllib.parse import SplitResult

from normtweak_core.errors import InputError
from normtweak_core.paths import given_path
from tasks.engine.addresses import (
    GUARDED,
    Service,
    answer,
    as_json,
    require_open_port,
    split_address,
    wrong_server,
)
from tasks.engine.environment import HOME_VARIABLE, default_variables

VARIABLE = "MLFLOW_TRACKING_URI"
REGISTRY = Service(
    VARIABLE,
    "an MLflow server",
    "http://localhost:5000 or sqlite:////folder/mlflow.db",
    f"and versions are registered under {HOME_VARIABLE}",
)
DRIVERS = {"postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc"}  # of SQLAlchemy
HOSTED = ("databricks", "databricks-uc", "uc")
SQLITE = b"SQLite format 3\0"
# Asked where /health is not answered with OK, as behind a gateway: what only MLflow knows.
API = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"


def existing_registry(root: Path, reader: str) -> str:
    """Return the tracking URI of a registry that is to be read from.

    Args:
        root: The state root, whose registry it is where the environment names none.
        reader: What reads from it.

    Raises:
        InputError: There is none, or it cannot be worked with.
    """
    uri = os.environ.get(VARIABLE) or default_variables(root)[VARIABLE]
    if uri.startswith("sqlite:"):
        file = sqlite_file(uri)
        if not file.is_file():
            raise InputError(
                f"{reader} needs the registry that holds the version; there is none at {file}: set "
                f"{HOME_VARIABLE} or {VARIABLE} to where it is."
            )
    check_registry(uri)
    return uri


def check_registry(tracking_uri: str) -> None:
    """Return if an MLflow tracking URI can be worked with.

    Raises:
        InputError: It is no address, nothing or no MLflow answers at it within seconds, a database
            lacks its driver, or a sqlite file is none or has no folder.
    """
    schemes = ("http", "https", "sqlite", *DRIVERS, *HOSTED)
    if tracking_uri in HOSTED:  # MLflow knows where
        return
    parts = split_address(REGISTRY, tracking_uri, schemes)
    scheme, _, driver = parts.scheme.partition("+")
    if scheme == "sqlite":
        _check_sqlite(tracking_uri)
    elif scheme in DRIVERS:
        _check_database(tracking_uri, parts, driver or DRIVERS[scheme])
    elif scheme == "http":
        _check_server(tracking_uri)
    elif scheme == "https":
        require_open_port(REGISTRY, tracking_uri, parts)


def sqlite_file(uri: str) -> Path:
    """Return the file of a sqlite URI: sqlite:///relative or sqlite:////absolute.

    Raises:
        InputError: It names none.
    """
    text = uri.partition("://")[2].partition("?")[0].removeprefix("/")
    return given_path(text, VARIABLE)


def _check_sqlite(uri: str) -> None:
    file = sqlite_file(uri)
    if not file.parent.is_dir():
        raise InputError(
            "must name a file in an existing folder",
            key=VARIABLE,
            found=f"{file.parent} of {uri} is none",
            remedy="create it, or choose another place",
        )
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(
            "must name a file that can be written",
            key=VARIABLE,
            found=f"{file} of {uri} is none",
            remedy="choose another place",
        )
    if file.is_file() and file.stat().st_size:
        with file.open("rb") as opened:
            if opened.read(len(SQLITE)) != SQLITE:
                raise InputError(
                    "must name a database of SQLite, or a file that is not there yet",
                    key=VARIABLE,
                    found=f"{file} is something else",
                    remedy="choose another place",
                )


def _check_database(uri: str, parts: SplitResult, driver: str) -> None:
    if importlib.util.find_spec(driver) is None:
        raise InputError(
            f"needs the Python package {driver} for an address of {parts.scheme}",
            key=VARIABLE,
            found="it is not installed",
            remedy="install it, or give the address of an MLflow server",
        )
    if parts.hostname:
        require_open_port(REGISTRY, uri, parts)


def _check_server(uri: str) -> None:
    status, body = answer(REGISTRY, uri, "/health")
    if status in GUARDED or (status == 200 and body.strip() == b"OK"):
        return
    status, body = answer(REGISTRY, uri, API)
    if status in GUARDED or _is_object(body):
        return
    raise wrong_server(REGISTRY, uri, status)


def _is_object(body: bytes) -> bool:
    value = as_json(body)
    return isinstance(value, dict) and not {"experiment", "error_code"}.isdisjoint(value)
