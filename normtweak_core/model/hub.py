"""A model of the Hugging Face hub, in the local cache."""

import logging
import re
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.lazy import lazy
from normtweak_core.model.architecture import (
    check_decoder,
    check_experts,
    first_line,
    read_config,
)
from normtweak_core.model.checkpoint import INDEX_FILE, stored_names, weight_files
from normtweak_core.model.tokenizer_files import CHAT_TEMPLATES, TOKENIZER_PATTERNS

hub, errors = lazy("huggingface_hub"), lazy("huggingface_hub.errors")

log = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
# Terms of a model that whoever passes it on has to pass on too.
LEGAL_FILES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", *TOKENIZER_PATTERNS]
FILES += ["README.md", *LEGAL_FILES]
CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)", re.ASCII)
# Other formats and other precisions of the same weights, mostly in sub-folders.
NOT_FILES = ["*/*", "consolidated*", "*.fp16.safetensors", "*.bin.index.json"]


def is_hub_id(source: str) -> bool:
    """Say whether the source reads ``owner/name``."""
    return HUB_ID.fullmatch(source) is not None


def hub_id_of(folder: Path) -> str | None:
    """Return ``owner/name`` of a snapshot in the hub's cache; None of any other folder."""
    found = CACHED.fullmatch(folder.parent.parent.name)
    if folder.parent.name != "snapshots" or found is None:
        return None
    return f"{found['owner']}/{found['name']}"


def fetch_from_hub(repo: str, revision: str | None) -> Path:
    """Return the cached snapshot of a hub model, fetched first where it is absent or stale.

    The config is fetched and checked before the weights are. ``HF_HUB_OFFLINE`` and the cache
    folder are huggingface_hub's own settings and hold here.

    Raises:
        InputError: The model or revision does not exist, is not open to this user, cannot be
            reached, or is of a kind that this version cannot quantize.
    """
    at = repo if revision is None else f"{repo} at revision {revision}"
    try:
        if revision is not None and COMMIT.fullmatch(revision):
            try:  # a commit never changes, so a complete copy needs no look at the hub
                return _snapshot(repo, revision, local_files_only=True)
            except (errors.LocalEntryNotFoundError, InputError):
                log.info("%s is not complete in the cache; asking the hub", at)
        return _snapshot(repo, revision, local_files_only=False)
    except errors.GatedRepoError as error:
        raise InputError(
            f"the hub model {at} must be open to you; its owner asks for consent first. "
            "Accept the terms on its page and log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            "must exist on the hub",
            key="model.revision",
            found=f"{at} does not",
            remedy="check the revision",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            "must be a folder, a hub id or reference:NAME",
            key="model.source",
            found=f"neither a folder nor a hub model is called {repo}",
            remedy="check the spelling, or log in if it is private",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"the hub model {at} must be in the local cache or the hub within reach; neither is "
            "the case, and no folder has that name. Connect once, or give a folder."
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise InputError(
            f"the hub model {at} must be readable; it is not: {first_line(error)}"
        ) from error


def _snapshot(repo: str, revision: str | None, local_files_only: bool) -> Path:
    """Return a snapshot with a decoder's config and all its weights, or raise as the hub does."""
    options = {"revision": revision, "local_files_only": local_files_only}
    small = Path(hub.snapshot_download(repo, allow_patterns=["config.json", INDEX_FILE], **options))
    config = read_config(small)
    check_decoder(config, repo)
    check_experts(config, repo, stored_names(small))
    snapshot = hub.snapshot_download(
        repo, allow_patterns=FILES, ignore_patterns=NOT_FILES, **options
    )
    weight_files(Path(snapshot))
    check_experts(config, repo, stored_names(Path(snapshot)))
    # By itself, since nothing else below a folder is wanted; of the very same commit.
    options["revision"] = Path(snapshot).name
    hub.snapshot_download(repo, allow_patterns=[f"{CHAT_TEMPLATES}/*.jinja"], **options)
    return Path(snapshot)
