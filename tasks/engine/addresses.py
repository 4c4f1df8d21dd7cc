"""Addresses of servers that variables hold: their form, and whether something answers there.

Asked before a run starts, in seconds and with the standard library alone.
"""

import http.client
import json
import re
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from normtweak_core.errors import InputError
from normtweak_core.paths import shown

SECONDS_TO_ANSWER = 5
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
# A host that has a dot, is this one, or has a port.
WITHOUT_SCHEME = re.compile(
    r"(localhost|[\w-]+(\.[\w-]+)+)(:\d+)?(/.*)?|[\w.-]+:\d+(/.*)?", re.ASCII
)


SECRET_PARAMETER = re.compile(
    r"([?&](?:password|passwd|pwd|token|secret|api_?key|odbc_connect)=)[^&#]*", re.IGNORECASE
)
GUARDED = (401, 403)  # it wants a password, which variables of its client hold


@dataclass(frozen=True)
class Service:
    """What a variable names the address of, as messages call it."""

    variable: str
    what: str  # such as "an MLflow server"
    example: str
    without: str  # what unsetting the variable leads to


class NoAnswerError(InputError):
    """Nothing answers at an address, for now."""


def split_address(service: Service, value: str, schemes: tuple[str, ...]) -> SplitResult:
    """Return the parts of an address with a scheme and, over http, a host and a port that can be.

    Raises:
        InputError: It is no such address.
    """
    form = f"must be an address such as {service.example}"
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:  # a port that is none, half a bracket
        raise _refused(service, value, form, f": {error}", "correct it") from error
    if parts.scheme.partition("+")[0] not in schemes:
        path = "/api" if service.example.endswith("/api") else ""
        remedy = f"write one of {', '.join(f'{scheme}://' for scheme in schemes)}"
        if "://" not in value and WITHOUT_SCHEME.fullmatch(value):
            remedy = f"write http://{value.rstrip('/').removesuffix('/api')}{path}"
        raise _refused(service, value, form, "", remedy)
    if parts.scheme in ("http", "https") and not parts.hostname:
        raise _refused(service, value, form, ", which names no host", "correct it")
    if port == 0:
        raise _refused(service, value, form, ", whose port is none", "correct it")
    return parts


def answer(service: Service, value: str, path: str) -> tuple[int, bytes]:
    """Return status and body of what an http address answers below it, through proxies if set.

    Raises:
        InputError: Nothing answers within seconds.
    """
    parts = urlsplit(value.rstrip("/") + path)
    without_user = parts._replace(netloc=parts.netloc.rpartition("@")[2])  # urllib takes none
    try:
        with urllib.request.urlopen(without_user.geturl(), timeout=SECONDS_TO_ANSWER) as reply:
            return reply.status, reply.read(1000)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(1000)
    except urllib.error.URLError as error:
        raise no_answer(service, value, error.reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise no_answer(service, value, error) from error


def as_json(body: bytes) -> Any:
    """Return the value that an answer holds, or None where it is no JSON."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def require_open_port(service: Service, value: str, parts: SplitResult) -> None:
    """Accept an address at whose port something listens, or that is asked through a proxy.

    Raises:
        InputError: Nothing does.
    """
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # the server itself cannot be reached, and need not be
    port = parts.port or PORTS[parts.scheme.partition("+")[0]]
    try:
        socket.create_connection((host, port), SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise no_answer(service, value, error) from error


def wrong_server(service: Service, value: str, status: int, form: str = "") -> InputError:
    """Return the error about an address at which something else answers."""
    return InputError(
        f"must be the address of {service.what}{form}",
        key=service.variable,
        found=f"what answers at {value} is none (status {status})",
        remedy="correct the address",
    )


def no_answer(service: Service, value: str, reason: object) -> NoAnswerError:
    """Return the error about an address at which nothing answers."""
    told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return NoAnswerError(
        f"must be the address of {service.what} that answers",
        key=service.variable,
        found=f"{without_password(value)} does not ({told})",
        remedy=f"start that server, correct the address, or unset {service.variable}, "
        f"{service.without}",
    )


def without_password(value: str) -> str:
    """Return an address without the password or token that it may hold, wherever it stands."""
    value = re.sub(r"(://[^/?#@:]*):[^/?#]*@", r"\1:...@", value)
    value = re.sub(r"://[^/?#@:]+@", "://...@", value)  # a token alone
    return SECRET_PARAMETER.sub(r"\1...", value)


def _refused(service: Service, value: str, form: str, why: str, remedy: str) -> InputError:
    found = f"found {shown(without_password(value))}{why}"
    return InputError(form, key=service.variable, found=found, remedy=remedy)
