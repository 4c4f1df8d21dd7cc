"""Which state of a data set a recipe means: local files, or a commit on the hub; no torch."""

import contextlib
import logging
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.lazy import lazy
from normtweak_core.paths import given_path

hub = lazy("huggingface_hub")
errors = lazy("huggingface_hub.errors")
file_download = lazy("huggingface_hub.file_download")
hub_utils = lazy("huggingface_hub.utils")  # has the release of httpx that the hub client uses

log = logging.getLogger(__name__)

README = "README.md"  # what `datasets` too asks for first, to learn the commit
SECONDS_TO_ANSWER = 30  # of the hub, at least


def local_data(path: str) -> Path | None:
    """Return the file or folder that a data set path names; None where it is a name on the hub."""
    local = given_path(path, "calibration.path")
    return local if local.exists() else None


def split_hub_name(path: str) -> tuple[str, str | None]:
    """Return the repository and the configuration, if any, of ``name:configuration``."""
    name, _, configuration = path.partition(":")
    return name, configuration or None


def hub_data_revision(path: str, key: str = "calibration.path") -> str:
    """Return the commit that a hub data set is at; without the hub, the one last seen here.

    Args:
        path: ``name`` or ``name:configuration``.
        key: The recipe key that names it.

    Writes nothing. ``HF_HUB_OFFLINE``, ``HF_HUB_ETAG_TIMEOUT`` (seconds to wait for the hub, at
    least 30) and the cache folder are huggingface_hub's own settings.

    Raises:
        InputError: There is no such data set, it is not open to this user, or the hub is out of
            reach and the cache knows no commit.
    """
    name, _ = split_hub_name(path)
    if not hub.is_offline_mode():
        try:
            timeout = max(SECONDS_TO_ANSWER, hub.constants.HF_HUB_ETAG_TIMEOUT)
            return hub.HfApi().dataset_info(name, timeout=timeout).sha
        except (hub_utils.httpx.TransportError, errors.OfflineModeIsEnabled):
            log.warning("the hub is out of reach: data set %s is the one last seen here", name)
        except (errors.HfHubHTTPError, errors.HFValidationError) as error:
            raise InputError(
                "must be a file, a folder or a hub data set that you can read",
                key=key,
                found=f"{path} is not: {' '.join(str(error).split())}",
            ) from error
    known = _cached_ref(name)
    if known is None:
        raise InputError(
            f"data set {path} cannot be read: no file or folder has that name, the hub is out of "
            "reach and its cache knows no commit of it. Connect once, or give a file"
        )
    return known


def remember_revision(name: str) -> None:
    """Leave a data set's newest commit in the hub cache, for `hub_data_revision` without the hub.

    Reading at a given commit records no branch; asking for a file of the branch does, even where
    there is none.
    """
    with contextlib.suppress(errors.EntryNotFoundError):
        hub.hf_hub_download(name, README, repo_type="dataset")


def _cached_ref(name: str) -> str | None:
    """Return the commit that the cache recorded for the main branch."""
    stored = file_download.repo_folder_name(repo_id=name, repo_type="dataset")
    folder = Path(hub.constants.HF_HUB_CACHE) / stored
    ref = folder / "refs" / "main"
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None
