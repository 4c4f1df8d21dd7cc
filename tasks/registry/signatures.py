"""Signatures of registered versions: beside the files that they are of, and told by the version."""

from pathlib import Path

from normtweak_core.export.verification.signing import SIGNATURE, Signature, sign_export
from normtweak_core.scratch import scratch_folder
from tasks.registry.names import Address
from tasks.registry.registered import files_of, find_our_version, registry_client

EXPORT = "model"  # the folder of an export among the files of a version
TAGS = ("signature", "signature.sha256", "signature.key_sha256")


def sign_version(
    uri: str, address: Address, key: Path, password: bytes | None = None
) -> tuple[Signature, str]:
    """Sign the export of a version, and return the signature and where the registry has it.

    A version that was signed before gets the new signature in the place of the old one.

    Args:
        uri: Address of the registry.
        address: Of the version.
        key: Private elliptic key, PEM.
        password: Of the key, where it is encrypted.

    Raises:
        InputError: There is no such version of ours, or the key is none.
        VerificationError: The registry's files are not those that were written.
    """
    client = registry_client(uri)
    version = find_our_version(client, address)
    with files_of(address, uri) as files, scratch_folder("signature") as scratch:
        path = scratch / SIGNATURE
        signed = sign_export(files / EXPORT, key, password, path)
        client.log_model_artifact(version.tags["logged_model_id"], str(path), EXPORT)
    values = (f"{EXPORT}/{SIGNATURE}", signed.sha256, signed.key_sha256)
    for tag, value in zip(TAGS, values, strict=True):
        client.set_model_version_tag(version.name, str(version.version), tag, value)
    return signed, f"{version.uri}, {EXPORT}/{SIGNATURE}"
