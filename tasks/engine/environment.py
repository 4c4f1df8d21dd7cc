"""The environment Prefect, MLflow and torch need, set in one place before any is imported.

Each of them reads its settings once, at import; a variable set later has no effect, and some of
the defaults are wrong for us: telemetry, state in the home folder, a 20-second start limit, and
OpenMP threads that spin on a core another process needs. Values the user has set are kept.
"""

import importlib.util
import logging
import os
import resource
import sys
import tempfile
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.paths import given_path
from tasks.engine.api_address import profile_variables

HOME_VARIABLE = "NORMTWEAK_HOME"
LOG_VARIABLE, LOG_FORMS = "NORMTWEAK_LOG", ("plain", "json")
# `make reader-gptq` puts the environment that reads GPTQ files beside the packages.
REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("prefect", "results", "artifacts", "locks", "mlartifacts", "exports")
REBUILDS = "rebuilds"  # below the state root: a state root of its own for each rebuild
OUR_LOGGERS = ("flows", "tasks", "normtweak_core")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_READ_AT_IMPORT = ("prefect", "mlflow", "torch")
_OURS = ("NORMTWEAK_", "PREFECT_", "MLFLOW_", "HF_")  # an empty one counts as unset
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_SOCKS = ("socks5", "socks5h")
_NUMBERS: dict[str, type[int] | type[float]] = {
    "OMP_NUM_THREADS": int,
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": float,
}


def state_root() -> Path:
    """Return the absolute folder that holds all state: NORMTWEAK_HOME or ./.normtweak.

    Raises:
        InputError: NORMTWEAK_HOME is no path.
    """
    return given_path(os.environ.get(HOME_VARIABLE) or ".normtweak", HOME_VARIABLE).resolve()


def prepare_environment(root: Path | None = None) -> Path:
    """Return the state root after creating its folders and setting every variable it implies.

    Args:
        root: Folder for all state; None: NORMTWEAK_HOME, or .normtweak in the working folder.

    Raises:
        InputError: The folder cannot be created or written.
        RuntimeError: Prefect, MLflow or torch was imported before, so the settings come too late.
    """
    root = state_root() if root is None else root.resolve()
    variables = default_variables(root)
    late = [name for name in _READ_AT_IMPORT if name in sys.modules]
    changes = [name for name in variables if not os.environ.get(name)]
    if os.environ.get(HOME_VARIABLE) not in (None, "", str(root)):
        changes.append(HOME_VARIABLE)
    if late and changes:
        raise RuntimeError(
            f"prepare_environment must run before {' and '.join(late)} is imported, because "
            f"{', '.join(sorted(set(changes))[:3])}… would come too late; call it first."
        )
    _create_folders(root)
    os.environ[HOME_VARIABLE] = str(root)
    set_variables(root)
    for name in OUR_LOGGERS:
        # Prefect copies its handler to these loggers but not its level; theirs would be WARNING.
        logging.getLogger(name).setLevel(logging.INFO)
    return root


def set_variables(root: Path) -> None:
    """Set what the person has left unset or empty, and let the loopback be reached directly.

    A Prefect profile counts as what the person has set.

    Raises:
        InputError: A variable holds what none of its readers can use.
    """
    for name in [name for name, value in os.environ.items() if not value.strip()]:
        if name.startswith(_OURS) or name in default_variables(root):
            del os.environ[name]
    for name, value in {**profile_variables(), **default_variables(root)}.items():
        os.environ.setdefault(name, value)
    os.environ[HOME_VARIABLE] = str(root)  # whatever folder a child works in
    for name, kind in _NUMBERS.items():
        if not _is_positive(os.environ[name], kind):
            raise InputError(
                "must be a number above 0",
                key=name,
                found=f"found {os.environ[name]!r}",
                remedy="correct it, or unset it",
            )
    if os.environ.get(LOG_VARIABLE, LOG_FORMS[0]) not in LOG_FORMS:
        raise InputError(
            f"must be {' or '.join(LOG_FORMS)}",
            key=LOG_VARIABLE,
            found=f"found {os.environ[LOG_VARIABLE]!r}",
            remedy="correct it, or unset it",
        )
    _reach_loopback_directly()


def _is_positive(text: str, kind: type[int] | type[float]) -> bool:
    try:
        return 0 < kind(text) < 1e9
    except ValueError:
        return False


def _reach_loopback_directly() -> None:
    """Except this machine from the proxies, for us and for every child.

    Prefect's client (httpx), MLflow's (requests), websockets and urllib all read these variables.

    Raises:
        InputError: A proxy is of a kind that Prefect's client does not take.
    """
    proxies = [name for name in os.environ if name.lower() in _PROXIES and os.environ[name].strip()]
    for name in proxies:
        scheme, separator, _ = os.environ[name].partition("://")
        if separator and scheme.lower() not in ("http", "https", *_SOCKS):
            raise InputError(
                "must be the address of a proxy, http://, https:// or socks5://",
                key=name,
                found=f"found {scheme}://",
                remedy="correct it, or unset it",
            )
        if scheme.lower() in _SOCKS and importlib.util.find_spec("socksio") is None:
            raise InputError(
                "needs the Python package socksio for a SOCKS proxy",
                key=name,
                found="it is not installed",
                remedy="install it, or unset the variable",
            )
    if proxies:
        given = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
        hosts = [*filter(None, (host.strip() for host in given.split(","))), *LOOPBACK]
        for name in ("no_proxy", "NO_PROXY"):
            os.environ[name] = "*" if "*" in hosts else ",".join(dict.fromkeys(hosts))


def default_variables(root: Path) -> dict[str, str]:
    """Return what each variable is set to where the user has not set it."""
    recorder = "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_"
    persister = "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_"
    logs = "PREFECT_LOGGING_"
    return {
        HOME_VARIABLE: str(root),
        # Nothing leaves the machine. MLflow accepts only "true"; Prefect's own server ignores
        # DO_NOT_TRACK and wants its second variable.
        "DO_NOT_TRACK": "true",
        # Its own pool reserves a GiB, which `ulimit -d` counts.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PREFECT_HOME": str(root / "prefect"),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(root / "results"),
        # Prefect's own default for whatever names no serializer is pickle.
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        # One by one, SQLite stays busy for 10-15 s after 200 tasks and the next call waits.
        f"{recorder}READ_BATCH_SIZE": "100",
        f"{recorder}BATCH_SIZE": "100",
        f"{recorder}FLUSH_INTERVAL": "1",
        f"{persister}READ_BATCH_SIZE": "100",
        f"{persister}BATCH_SIZE": "200",
        # The page of a run shows all lines; the terminal shows our own lines and warnings.
        f"{logs}EXTRA_LOGGERS": ",".join(OUR_LOGGERS),
        f"{logs}TO_API_WHEN_MISSING_FLOW": "ignore",
        f"{logs}HANDLERS_CONSOLE_LEVEL": "WARNING",
        f"{logs}FORMATTERS_STANDARD_FORMAT": "%(asctime)s %(levelname)s %(message)s",
        f"{logs}FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s %(levelname)s %(message)s",
        f"{logs}FORMATTERS_STANDARD_TASK_RUN_FMT": (
            "%(asctime)s %(levelname)s %(task_run_name)s: %(message)s"
        ),
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(usable_cores()),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }


def usable_cores() -> int:
    """Return how many cores this process may run on, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _create_folders(root: Path) -> None:
    advice = f"choose a folder you may write to with {HOME_VARIABLE}."
    try:
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True, exist_ok=True)
        for folder in (root, *(root / name for name in FOLDERS)):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"All state is kept under {root}, but {error.filename} is a file, not a folder; "
            f"remove it or {advice}"
        ) from error
    except OSError as error:
        raise InputError(
            f"All state is kept under {root}, which must be writable, but {error.strerror} "
            f"({error.filename}); {advice}"
        ) from error


def peak_rss_bytes(process: int | str = "self") -> int:
    """Return the most memory this process has held, or on Linux another one.

    Not ``ru_maxrss`` on Linux: there a process takes that over from the one that started it.
    """
    status = Path(f"/proc/{process}/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024  # the kernel's kB are KiB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
