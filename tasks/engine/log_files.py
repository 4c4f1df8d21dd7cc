"""The log file of a command or of a run that a service starts."""

import contextlib
import datetime
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from normtweak_core.errors import InputError
from tasks.engine.environment import OUR_LOGGERS, state_root
from tasks.engine.root_layout import LOGS


@contextlib.contextmanager
def logged_to_file(command: str) -> Iterator[Path]:
    """Write our log lines to a file of this command as well; nothing logged, no file.

    Yields:
        The file: under the state root, or among the temporary files where there is no root.
    """
    path = log_file(command)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in OUR_LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield path
    finally:
        for name in OUR_LOGGERS:
            logging.getLogger(name).removeHandler(handler)
        handler.close()


def log_file(command: str) -> Path:
    """Return where the log of this process's command goes; its folder exists.

    Under the state root, and among the temporary files where there is no root or none that can be
    written to: whatever fails is on its way to being told.
    """
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{command}-{os.getpid()}.log"
    with contextlib.suppress(InputError, OSError):
        root = state_root()
        if root.is_dir():
            (root / LOGS).mkdir(exist_ok=True)
            if os.access(root / LOGS, os.W_OK | os.X_OK):
                return root / LOGS / name
    return Path(tempfile.gettempdir()) / f"normtweak-{name}"
