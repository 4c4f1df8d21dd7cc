"""Whether a registry can be reached, asked before anything slow is done for it."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from normtweak_core.errors import InputError
from tasks.environment import HOME_VARIABLE, default_variables

CONNECT_SECONDS = 5
VARIABLE = "MLFLOW_TRACKING_URI"


def existing_registry(root: Path, reader: str) -> str:
    """Return the tracking URI of a registry that is to be read from; imports no MLflow.

    Args:
        root: The state root, whose registry it is where the environment names none.
        reader: What reads from it.

    Raises:
        InputError: There is none, or it does not answer.
    """
    uri = os.environ.get(VARIABLE) or default_variables(root)[VARIABLE]
    parts = urlsplit(uri)
    file = Path(parts.path.removeprefix("/"))
    if parts.scheme == "sqlite" and not file.is_file():
        raise InputError(
            f"{reader} needs the registry that holds the version; there is none at {file}: set "
            f"{HOME_VARIABLE} or {VARIABLE} to where it is."
        )
    check_registry(uri)
    return uri


def check_registry(tracking_uri: str) -> None:
    """Return at once if an MLflow tracking URI can be worked with; imports no MLflow.

    Raises:
        InputError: Nothing answers at an http URI within five seconds, or the folder of a sqlite
            file does not exist.
    """
    parts = urlsplit(tracking_uri)
    if parts.scheme == "sqlite":
        folder = Path(parts.path.removeprefix("/")).parent
        if not folder.is_dir():
            raise InputError(
                f"The registry file of {tracking_uri} needs an existing folder, found none at "
                f"{folder}. Create it, or set MLFLOW_TRACKING_URI to another place."
            )
    # Behind a proxy the server itself cannot be reached, and need not be.
    behind_proxy = parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")
    if parts.scheme in ("http", "https") and not behind_proxy:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
        except OSError as error:
            raise InputError(
                f"The registry must answer at {parts.scheme}://{parts.hostname}:{port}, found: "
                f"{error}. Start that MLflow server, or correct MLFLOW_TRACKING_URI."
            ) from error
