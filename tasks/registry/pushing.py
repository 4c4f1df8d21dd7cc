"""An export in a repository of Hugging Face's hub: just the bytes that were verified or signed."""

import glob
from pathlib import Path

from normtweak_core.errors import ForeseenError, InputError
from normtweak_core.export.verification.verify import files_of_export, require_as_written
from normtweak_core.lazy import lazy
from normtweak_core.model.hub import is_hub_id
from tasks.registry.names import Address
from tasks.registry.registered import files_of, find_our_version, registry_client
from tasks.registry.signatures import EXPORT

hub, errors = lazy("huggingface_hub"), lazy("huggingface_hub.errors")

ALLOWED = "set HF_TOKEN to a token that may write there, or log in with `hf auth login`"


class PushError(ForeseenError):
    """The hub did not take an export; what it has taken is skipped the next time."""


def push_export(folder: Path, repo: str, public: bool = False, revision: str | None = None) -> str:
    """Return the address of the commit by which the hub has all files of an export.

    A repository that is not there is made, a private one unless asked otherwise; one that is keeps
    what else it holds. Endpoint, token and cache are huggingface_hub's own settings.

    Args:
        folder: The export, as it was written.
        repo: ``owner/name``.
        public: Whether anybody may read a repository that is made now.
        revision: Branch; None: main.

    Raises:
        InputError: The folder is no export, or nobody may write there with this token.
        VerificationError: The files are not those that were written.
        PushError: The hub does not answer, or fails.
    """
    if not is_hub_id(repo):
        raise InputError(f"a repository is written owner/name; found {repo!r}.")
    require_as_written(folder, "pushed")
    api = hub.HfApi()
    try:
        hub.utils.validate_repo_id(repo)
        api.create_repo(repo, private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=f"{folder.name}, by normtweak",
            allow_patterns=[glob.escape(name) for name in files_of_export(folder)],
        )
    except errors.HFValidationError as error:
        raise InputError(f"{repo!r} must be the name of a repository; {error}") from error
    except errors.OfflineModeIsEnabled as error:
        raise InputError("to push needs the hub; HF_HUB_OFFLINE is set: unset it.") from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo, error) from error
    except ValueError as error:  # of the card
        raise PushError(f"the hub does not take the card of {folder}: {_line(error)}") from error
    except errors.HTTPError as error:  # of whichever client the library uses
        raise PushError(
            f"the hub at {hub.constants.ENDPOINT} does not answer ({type(error).__name__}): push "
            "again when it does"
        ) from error
    return done.commit_url


def push_version(
    uri: str, address: Address, repo: str, public: bool = False, revision: str | None = None
) -> str:
    """Push the export of a registered version, with its signature where it has one.

    Raises:
        InputError: There is no such version of ours, or as `push_export`.
        VerificationError: As there.
        PushError: As there.
    """
    find_our_version(registry_client(uri), address)
    with files_of(address, uri) as files:
        return push_export(files / EXPORT, repo, public, revision)


def _refused(repo: str, error: Exception) -> Exception:
    status = error.response.status_code
    told = " ".join((error.server_message or str(error)).split())[:200]
    if status in (401, 403):
        return InputError(
            f"to push to {repo} needs a token that may; the hub says {told}: {ALLOWED}."
        )
    remedy = "check the name and --revision" if status == 404 else "push again"
    return PushError(f"the hub does not take {repo} (status {status}: {told}): {remedy}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
