"""What the registry says about a version, as a rebuild reads it."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient

from flows.pipeline.kept_files import read_kept
from flows.pipeline.places import NOTHING, PLACE
from flows.recipes.kinds import RecipeKind, kind_of
from normtweak_core.errors import InputError
from normtweak_core.finetune.source import recorded_refusals
from tasks.engine.provenance import MadeWith
from tasks.registry.names import parse_address
from tasks.registry.registered import RegisteredVersion, download_reports, find_our_version
from tasks.results import FloatType


@dataclass(frozen=True)
class Recorded:
    """A version: recipe, hashes of what it was made from, and what it was made with."""

    version: RegisteredVersion
    values: dict[str, Any]  # of the recipe, as it was written
    made_with: MadeWith
    kind: RecipeKind = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", kind_of(self.values))

    @property
    def uri(self) -> str:
        """Address of the version."""
        return self.version.uri

    @property
    def export_sha256(self) -> str:
        """Hash of the payload that a rebuild has to give."""
        return self.tag("export_sha256")

    def tag(self, name: str) -> str:
        """Return what a tag of the version says; empty: that there is nothing.

        Raises:
            InputError: Somebody has removed it.
        """
        if name not in self.version.tags:
            raise InputError(
                f"{self.uri} must have the tag {name} to be rebuilt; it has none: carry out its "
                "recipe again, which sets it."
            )
        told = self.version.tags[name]
        return "" if told == NOTHING else told

    @property
    def float_type(self) -> FloatType | None:
        """The float type of the export, which a rebuild does not look for; None: none is told."""
        dtype = self.version.tags.get("export_dtype")
        refused = recorded_refusals(self.version.tags.get("float_types_refused", ""))
        return None if dtype is None else FloatType(dtype=dtype, refused=refused)

    def place(self, key: str) -> str | None:
        """Return the absolute path that a key of the recipe named; None: it named no path."""
        return self.tag(f"{PLACE}{key}") or None

    def identity(self) -> str:
        """Return a hash over the version and all it says."""
        facts = [self.uri, self.version.tags, self.values, self.made_with.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_recorded(client: MlflowClient, uri: str, folder: Path) -> Recorded:
    """Return what the registry says about a version.

    Args:
        client: Client of the registry.
        uri: models:/NAME/VERSION or models:/NAME@ALIAS.
        folder: Where its reports may be copied to.

    Raises:
        InputError: There is no such version, normtweak has not registered it, or its reports are
            missing or not those that it was registered with.
    """
    version = find_our_version(client, parse_address(uri))
    reports = download_reports(client, version, folder)
    try:
        values = yaml.safe_load((reports / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{version.uri} must have its recipe.yaml in the registry; it cannot be read "
            f"({' '.join(str(error).split())[:200]}): carry out its recipe again, which stores it."
        ) from error
    found = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    if found != version.tags["recipe_sha256"]:
        raise InputError(
            f"{version.uri} must have the recipe it was registered with, with hash "
            f"{version.tags['recipe_sha256']}; its recipe.yaml has {found}: carry out its recipe "
            "again, which stores it."
        )
    return Recorded(version, values, read_kept(reports))
