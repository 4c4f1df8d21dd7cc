"""Which Prefect API the person has named, and whether it answers; no Prefect."""

import os
import tomllib

from normtweak_core.errors import InputError
from normtweak_core.given_files import read_utf8
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

VARIABLE = "PREFECT_API_URL"
ENGINE = Service(
    VARIABLE,
    "a Prefect server",
    "http://127.0.0.1:4200/api",
    "and the run starts a server of its own",
)
PROFILES, PROFILE = "PREFECT_PROFILES_PATH", "PREFECT_PROFILE"


def profile_variables() -> dict[str, str]:
    """Return what the active Prefect profile of this user says about the API.

    Read from where Prefect itself keeps profiles: our own PREFECT_HOME, which takes its place for a
    run, has none.

    Raises:
        InputError: The file of the profiles is damaged.
    """
    home = os.environ.get("PREFECT_HOME") or "~/.prefect"
    usual = given_path(home, "PREFECT_HOME") / "profiles.toml"
    file = given_path(os.environ.get(PROFILES) or usual, PROFILES)
    if not file.is_file():
        return {}
    try:
        stored = tomllib.loads(read_utf8(file, "the Prefect profiles"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(
            f"{file} must be the Prefect profiles, in TOML; {error}: correct the file."
        ) from error
    name = os.environ.get(PROFILE) or stored.get("active")
    settings = (stored.get("profiles") or {}).get(name) or {}
    return {key: str(value) for key, value in settings.items() if key.startswith("PREFECT_API_")}


def check_engine(url: str) -> None:
    """Return if an address is that of a Prefect API that answers.

    Raises:
        InputError: It is not; over https only whether something listens is asked.
    """
    parts = split_address(ENGINE, url, ("http", "https"))
    if parts.scheme == "https":
        require_open_port(ENGINE, url, parts)
        return
    status, body = answer(ENGINE, url, "/health")
    if status in GUARDED or (status == 200 and as_json(body) is True):
        return
    raise wrong_server(ENGINE, url, status, ", which ends in /api")
