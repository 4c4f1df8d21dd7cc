"""Who has made an export: a signature over all of its files, in Sigstore's format for models.

A manifest tells that files are those that were written together; anybody can write another one. A
signature tells whose they are. It is a Sigstore bundle as `model-signing` writes and checks it,
made with an elliptic key, so that no network is needed:

    openssl ecparam -name prime256v1 -genkey -noout -out key.pem
    openssl ec -in key.pem -pubout -out key.pub
    python -m model_signing verify key EXPORT --signature EXPORT/model.sig --public_key key.pub
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from normtweak_core.errors import InputError, VerificationError
from normtweak_core.export.verification.verify import SIGNATURE, files_of_export, require_as_written
from normtweak_core.lazy import lazy

model_signing = lazy("model_signing")
serialization = lazy("cryptography.hazmat.primitives.serialization")
ec = lazy("cryptography.hazmat.primitives.asymmetric.ec")

# What grows beside an export, and what a client of the hub keeps there.
UNSIGNED = ("reports", ".cache")
CURVES = ("secp256r1", "secp384r1", "secp521r1")
KEYS = "a PEM file with a key of the elliptic curve P-256, P-384 or P-521"


@dataclass(frozen=True)
class Signature:
    """A signature that was written."""

    path: Path
    sha256: str  # of its file
    key_sha256: str  # of the public key, DER: what `openssl pkey -pubout -outform DER` gives


def sign_export(
    folder: Path, key: Path, password: bytes | None = None, signature: Path | None = None
) -> Signature:
    """Sign all files of an export; nothing else in the folder changes.

    Args:
        folder: The export, as it was written.
        key: Private elliptic key, PEM.
        password: Of the key, where it is encrypted.
        signature: The file to write; None: `SIGNATURE` in the folder.

    Raises:
        InputError: The folder is no export, the key is none or its password does not fit, or
            `model-signing` is not installed.
        VerificationError: The files are not those that were written.
    """
    _require_signable(folder)
    found = _private_key(key, password)
    path = signature or folder / SIGNATURE
    signer = _installed().signing.Config()
    signer.use_elliptic_key_signer(private_key=key, password=password)
    signer.set_hashing_config(_hashing(folder, path)).sign(folder.absolute(), path)
    return Signature(path, hashlib.sha256(path.read_bytes()).hexdigest(), _fingerprint(found))


def check_signature(folder: Path, key: Path, signature: Path | None = None) -> Signature:
    """Return the signature of an export if it is that of a key, over just the files that are there.

    Args:
        folder: The export.
        key: Public elliptic key, PEM.
        signature: The file to read; None: `SIGNATURE` in the folder.

    Raises:
        InputError: There is no signature or no key, or `model-signing` is not installed.
        VerificationError: Another key has signed, or a file was altered, added or removed since;
            it is named.
    """
    path = signature or folder / SIGNATURE
    if not path.is_file():
        raise InputError(
            f"a signed export must come with its signature; there is none at {path}: sign it with "
            "normtweak sign, or name another file."
        )
    public = _public_key(key)
    verifier = _installed().verifying.Config().use_elliptic_key_verifier(public_key=key)
    verifier.set_hashing_config(_hashing(folder, path))
    try:
        verifier.verify(folder.absolute(), path)
    except Exception as error:  # whatever a damaged bundle leads to, it is no signature
        raise VerificationError(_refused(folder, path, key, error)) from error
    return Signature(path, hashlib.sha256(path.read_bytes()).hexdigest(), _fingerprint(public))


def _require_signable(folder: Path) -> None:
    require_as_written(folder, "signed")
    own = set(files_of_export(folder))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        beside = name.startswith(".git") or name.split("/")[0] in UNSIGNED
        if path.is_file() and name not in own and not beside:
            raise VerificationError(
                f"only the files of an export are signed; {folder} holds {name}, which is none of "
                "them: remove it."
            )


def _hashing(folder: Path, signature: Path):
    """Return what is signed: every file but signatures, and what a clone of a repository adds."""
    unsigned = {folder.absolute() / name for name in (SIGNATURE, *UNSIGNED)}
    unsigned.add(signature.absolute())
    inside = [path for path in sorted(unsigned) if path.is_relative_to(folder.absolute())]
    hashing = model_signing.hashing.Config()
    hashing.set_ignored_paths(paths=inside, ignore_git_paths=True)
    return hashing.set_allow_symlinks(True)  # of which the hub's cache is made


def _installed():
    try:
        return model_signing.signing and model_signing
    except ModuleNotFoundError as error:
        raise InputError(
            f"signatures need the package model-signing, which lacks {error.name} here: install "
            "normtweak[sign]."
        ) from error


def _private_key(path: Path, password: bytes | None):
    try:
        key = serialization.load_pem_private_key(_read(path), password)
    except (ValueError, TypeError) as error:  # no key, or a password that does not fit
        raise InputError(f"{path} must be {KEYS}, opened by its password; {error}.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path} must be {KEYS}; found {type(key).__name__}.")
    return _of_a_known_curve(path, key.public_key())


def _public_key(path: Path):
    try:
        key = serialization.load_pem_public_key(_read(path))
    except ValueError as error:
        raise InputError(f"{path} must be {KEYS}, the public one; found none.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InputError(f"{path} must be {KEYS}; found {type(key).__name__}.")
    return _of_a_known_curve(path, key)


def _of_a_known_curve(path: Path, key):
    if key.curve.name not in CURVES:
        raise InputError(f"{path} must be {KEYS}; found one of {key.curve.name}.")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} must be {KEYS}; it cannot be read ({error.strerror}).") from error


def _fingerprint(key) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _refused(folder: Path, path: Path, key: Path, error: Exception) -> str:
    told = " ".join(str(error).split())
    if told.startswith("Signature mismatch: "):
        return (
            f"the files of {folder} must be those that {path.name} was made for; "
            f"{told.removeprefix('Signature mismatch: ').rstrip('.')}. Fetch the export again."
        )
    why = told or type(error).__name__
    return f"{path} must be a signature made with the key of {key}; it is not ({why[:200]})."
