"""Whose an export is: signed with a key, checked with its public half by us and by the library."""

import functools
import hashlib
import re
import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from normtweak_core.errors import InputError, VerificationError
from normtweak_core.export.verification.signing import SIGNATURE, check_signature, sign_export
from normtweak_core.export.verification.verify import verify_export
from tests.signed import SPKI, write_export, write_key


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    write_key(folder, "ours", ec.generate_private_key(ec.SECP256R1()))
    write_key(folder, "large", ec.generate_private_key(ec.SECP521R1()))
    write_key(folder, "sealed", ec.generate_private_key(ec.SECP384R1()), b"sesame")
    write_key(folder, "odd", ec.generate_private_key(ec.SECP256K1()))
    write_key(folder, "rsa", rsa.generate_private_key(65537, 2048))
    (folder / "text.pem").write_text("no key")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_export(tmp_path_factory.mktemp("signed"))


@pytest.fixture
def export(written, tmp_path):
    return shutil.copytree(written, tmp_path / "export")


def test_the_key_that_signed_is_the_one_that_is_found(export, keys):
    before = {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    signed = sign_export(export, keys / "ours.pem")
    assert check_signature(export, keys / "ours.pub") == signed
    assert signed.path == export / SIGNATURE
    assert signed.sha256 == hashlib.sha256(signed.path.read_bytes()).hexdigest()
    public = serialization.load_pem_public_key((keys / "ours.pub").read_bytes())
    der = public.public_bytes(serialization.Encoding.DER, SPKI)
    assert signed.key_sha256 == hashlib.sha256(der).hexdigest()
    assert {path: path.read_bytes() for path in before} == before
    assert {path for path in export.rglob("*") if path.is_file()} == {*before, signed.path}
    assert verify_export(export).num_quantized == 14  # readers pass it by


def test_who_has_the_library_alone_checks_it_too(export, keys):
    sign_export(export, keys / "ours.pem")
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(export)]
    command += ["--signature", str(export / SIGNATURE), "--public_key"]
    run = functools.partial(subprocess.run, capture_output=True, text=True)
    assert run([*command, str(keys / "ours.pub")]).returncode == 0
    (export / "config.json").write_text("{}")
    found = run([*command, str(keys / "ours.pub")])
    assert found.returncode != 0
    assert "config.json" in found.stdout + found.stderr


def test_a_signature_may_lie_elsewhere_and_be_made_again(export, keys, tmp_path):
    sign_export(export, keys / "ours.pem")
    again = sign_export(export, keys / "large.pem")
    assert check_signature(export, keys / "large.pub") == again
    beside = sign_export(export, keys / "ours.pem", signature=tmp_path / "beside.sig")
    assert check_signature(export, keys / "ours.pub", tmp_path / "beside.sig") == beside
    assert check_signature(export, keys / "large.pub") == again


def test_a_sealed_key_opens_with_its_password_alone(export, keys):
    sign_export(export, keys / "sealed.pem", b"sesame")
    check_signature(export, keys / "sealed.pub")
    for password in (None, b"simsim"):
        with pytest.raises(InputError, match=r"sealed\.pem must be a PEM .* opened by its passw"):
            sign_export(export, keys / "sealed.pem", password)


def altered(folder):
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))


CHANGES = {
    "model.safetensors": altered,
    "generation_config.json": lambda folder: (folder / "generation_config.json").unlink(),
    "modeling_evil.py": lambda folder: (folder / "modeling_evil.py").write_text("import os"),
    "normtweak.json": lambda folder: (folder / "normtweak.json").write_text("{}"),
    "verify/probe.safetensors": lambda folder: (folder / "verify/probe.safetensors").write_bytes(
        b""
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_was_changed_is_named(export, keys, name):
    sign_export(export, keys / "ours.pem")
    CHANGES[name](export)
    what = f"the files of .* must be those that model.sig was made for; .*{re.escape(name)}"
    with pytest.raises(VerificationError, match=what):
        check_signature(export, keys / "ours.pub")


def test_what_grows_beside_an_export_and_links_leave_a_signature_valid(export, keys, tmp_path):
    signed = sign_export(export, keys / "ours.pem")
    for name in ("reports/two/report.html", ".cache/huggingface/x.metadata", ".gitattributes"):
        (export / name).parent.mkdir(parents=True, exist_ok=True)
        (export / name).write_text("beside")
    assert check_signature(export, keys / "ours.pub") == signed
    linked = tmp_path / "snapshot"  # as the hub's cache holds it
    for path in [path for path in export.rglob("*") if path.is_file()]:
        (linked / path.relative_to(export)).parent.mkdir(parents=True, exist_ok=True)
        (linked / path.relative_to(export)).symlink_to(path)
    assert check_signature(linked, keys / "ours.pub").sha256 == signed.sha256
    (export / "README.md").write_text("another card")
    for folder in (export, linked):
        with pytest.raises(VerificationError, match=r"README\.md"):
            check_signature(folder, keys / "ours.pub")


def test_what_somebody_has_put_beside_an_export_is_not_signed(export, keys):
    (export / "notes.env").write_text("TOKEN=sesame")
    with pytest.raises(VerificationError, match=r"holds notes\.env, which is none of them"):
        sign_export(export, keys / "ours.pem")


def test_another_key_and_a_damaged_signature_are_refused(export, keys):
    sign_export(export, keys / "ours.pem")
    with pytest.raises(VerificationError, match=r"made with the key of .*large\.pub; it is not"):
        check_signature(export, keys / "large.pub")
    place = export / SIGNATURE
    text = place.read_text()
    sign = text.index('"sig"')
    at = text.index('"', sign + 6) + 20
    for damaged in (
        "",
        "{}",
        text[:200],
        text[:at] + ("A" if text[at] != "A" else "B") + text[at:],
    ):
        place.write_text(damaged)
        with pytest.raises(VerificationError, match="must be a signature made with the key of"):
            check_signature(export, keys / "ours.pub")


def test_what_is_no_key_and_no_signature_is_refused(export, keys):
    with pytest.raises(InputError, match=r"there is none at .*model\.sig: sign it with"):
        check_signature(export, keys / "ours.pub")
    for name, found in (
        ("rsa.pem", "found RSAPrivateKey"),
        ("odd.pem", "found one of secp256k1"),
        ("text.pem", "opened by its password"),
        ("none.pem", "cannot be read"),
    ):
        with pytest.raises(InputError, match=f"{name} must be a PEM file with a key .*{found}"):
            sign_export(export, keys / name)
    sign_export(export, keys / "ours.pem")
    for name, found in (("rsa.pub", "found RSAPublicKey"), ("ours.pem", "the public one")):
        with pytest.raises(InputError, match=f"{name} must be a PEM file with a key .*{found}"):
            check_signature(export, keys / name)


def test_only_what_was_written_is_signed(export, keys):
    altered(export)
    with pytest.raises(VerificationError, match=r"model\.safetensors was altered since"):
        sign_export(export, keys / "ours.pem")
    assert not (export / SIGNATURE).exists()


def test_without_the_package_the_sentence_says_what_to_install(export, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(InputError, match=r"need the package model-signing, .*normtweak\[sign\]"):
        sign_export(export, keys / "ours.pem")
