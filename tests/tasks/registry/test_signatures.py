"""A signed version: its signature lies with its files, and the version says whose it is."""

import os
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from flows.cli import main
from normtweak_core.errors import InputError
from normtweak_core.export.payload import file_sha256
from normtweak_core.export.verification.signing import check_signature
from tasks.registry.names import parse_address
from tasks.registry.registered import files_of
from tasks.registry.signatures import sign_version
from tests.flows.in_process import run_command
from tests.signed import write_export, write_key

OURS = {name: "0" * 64 for name in ("recipe_sha256", "source_sha256", "calibration_sha256")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An export, and the keys of two people."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("ours", "others"):
        write_key(folder, name, ec.generate_private_key(ec.SECP256R1()), b"sesame")
    write_export(folder)
    return folder


def test_a_version_says_who_signed_it_and_its_files_prove_it(registry, made):
    registry = replace(registry, export=made / "export")
    uri = registry.register(tags=OURS).model_uri
    address = parse_address(uri)
    for name in ("others", "ours"):
        signed, where = sign_version(registry.uri, address, made / f"{name}.pem", b"sesame")
    assert where == f"{uri}, model/model.sig"
    version = registry.client.get_model_version(registry.name, "1")
    assert version.tags["signature"] == "model/model.sig"
    assert version.tags["signature.key_sha256"] == signed.key_sha256
    with files_of(address, registry.uri) as files:
        assert file_sha256(files / "model/model.sig") == version.tags["signature.sha256"]
        found = check_signature(files / "model", made / "ours.pub")
        assert found.key_sha256 == signed.key_sha256
    assert not (made / "export" / "model.sig").exists()
    again = registry.register(tags=OURS)
    assert (again.version, again.created) == (1, False)


def test_the_commands_sign_and_tell_whose_an_export_is(registry, made, capsys, monkeypatch):
    registry = replace(registry, export=made / "export")
    uri = registry.register(tags=OURS).model_uri
    key, secret = ("--key", str(made / "ours.pem")), ("--password-variable", "KEY_PASSWORD")
    values = {"MLFLOW_TRACKING_URI": registry.uri, "KEY_PASSWORD": "sesame"}
    for name in (uri, str(made / "export")):
        assert run_command(registry.root, "sign", name, *key, *secret, **values) == 0
        told = capsys.readouterr().out
        assert told.startswith(f"signed {name}: ")
        fingerprint = told.split()[-1]
    check = ("verify", str(made / "export"), "--signature", "--public-key")
    assert run_command(registry.root, *check, str(made / "ours.pub")) == 0
    assert fingerprint in capsys.readouterr().out.splitlines()[0]
    assert run_command(registry.root, *check, str(made / "others.pub")) == 1
    assert "must be a signature made with the key of" in capsys.readouterr().err
    (made / "export" / "model.sig").unlink()


def test_half_of_a_question_and_a_missing_password_are_refused(made, capsys):
    assert main(["verify", str(made / "export"), "--signature"]) == 2
    assert "with --signature and --public-key, both of them" in capsys.readouterr().err
    assert "NO_SUCH" not in os.environ
    sign = ["sign", str(made / "export"), "--key", str(made / "ours.pem")]
    assert main([*sign, "--password-variable", "NO_SUCH"]) == 2
    assert "the environment must have NO_SUCH" in capsys.readouterr().err


def test_what_something_else_has_registered_is_not_signed(registry, made):
    address = parse_address(registry.register().model_uri)
    with pytest.raises(InputError, match="must have been registered by normtweak"):
        sign_version(registry.uri, address, made / "ours.pem", b"sesame")
