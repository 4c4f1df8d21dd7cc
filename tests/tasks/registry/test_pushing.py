"""Exports go to a hub as they are; a local one speaks its protocol, and huggingface_hub asks it."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from normtweak_core.export.payload import file_sha256
from normtweak_core.export.verification.signing import sign_export
from tasks.registry.names import parse_address
from tasks.registry.signatures import sign_version
from tests.flows.command_line import REPOSITORY
from tests.signed import write_export, write_key
from tests.tasks.registry.fake_hub import fake_hub
from tests.tasks.registry.test_signatures import OURS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_key(folder, "ours", ec.generate_private_key(ec.SECP256R1()))
    export = write_export(folder)
    sign_export(export, folder / "ours.pem")
    (export / "reports" / "one").mkdir(parents=True)
    (export / "reports" / "one" / "report.html").write_text("of a recipe")
    return folder


@pytest.fixture
def hub():
    with fake_hub() as running:
        yield running


def push(hub, *arguments, **variables):
    """Carry the command out in a process of its own: the library reads its endpoint at import."""
    told = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    told |= {"HF_ENDPOINT": hub.address, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "push", *map(str, arguments)],
        cwd=REPOSITORY,
        env=told | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.strip().splitlines()[-1:]


def stored(hub, repo):
    return {path.removeprefix(repo): data for path, data in hub.files.items()}


def on_disk(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {f"/{name}": data for name, data in found.items() if not name.startswith("reports/")}


def test_the_hub_has_every_byte_and_no_report(hub, made, tmp_path):
    export = made / "export"
    home = {"NORMTWEAK_HOME": str(tmp_path)}
    code, out, err = push(hub, export, "--repo", "me/tiny-w4", **home)
    assert (code, out) == (0, f"pushed {export}: {hub.address}/me/tiny-w4/commit/{1:040d}\n"), err
    assert hub.repositories == {"me/tiny-w4": "private"}
    assert stored(hub, "me/tiny-w4@main") == on_disk(export)
    assert {"/model.sig", "/README.md", "/normtweak.json"} < on_disk(export).keys()
    assert hub.commits == ["export, by normtweak"]
    for name in (".env", "key.pem", "pytorch_model.bin"):
        (export / name).write_text("of nobody's business")

    code, *_ = push(hub, export, "--repo", "me/other", "--public", "--revision", "next", **home)
    assert code == 0
    for name in (".env", "key.pem", "pytorch_model.bin"):
        (export / name).unlink()
    assert hub.repositories["me/other"] == "public"
    assert set(hub.files) - {f"me/tiny-w4@main{name}" for name in on_disk(export)} == {
        f"me/other@next{name}" for name in on_disk(export)
    }


def test_a_version_is_pushed_with_its_signature(hub, made, registry):
    registry = replace(registry, export=made / "export")
    uri = registry.register(tags=OURS).model_uri
    signed, _ = sign_version(registry.uri, parse_address(uri), made / "ours.pem")
    home = {"NORMTWEAK_HOME": str(registry.root), "MLFLOW_TRACKING_URI": registry.uri}
    code, out, err = push(hub, uri, "--repo", "me/version", **home)
    assert (code, out) == (0, f"pushed {uri}: {hub.address}/me/version/commit/{1:040d}\n"), err
    found = stored(hub, "me/version@main")
    assert found["/model.safetensors"] == (made / "export" / "model.safetensors").read_bytes()
    assert found["/model.sig"] != (made / "export" / "model.sig").read_bytes()
    (registry.root / "fetched").write_bytes(found["/model.sig"])
    assert file_sha256(registry.root / "fetched") == signed.sha256


def test_what_cannot_be_pushed_is_told_in_one_sentence(hub, made, tmp_path):
    home = {"NORMTWEAK_HOME": str(tmp_path)}
    export = made / "export"
    asked = (export, "--repo", "me/tiny-w4")
    refused = push(hub, *asked, **home, HF_TOKEN="hf_other")
    assert (refused[0], refused[2][0].split("; ")[0]) == (
        2,
        "normtweak: to push to me/tiny-w4 needs a token that may",
    )
    assert "log in with `hf auth login`" in refused[2][0]
    assert "hf_other" not in "".join(refused[1:2])
    assert push(hub, export, "--repo", "tiny", **home)[2] == [
        "normtweak: a repository is written owner/name; found 'tiny'."
    ]
    assert push(hub, *asked, **home, HF_HUB_OFFLINE="1")[0] == 2
    for name in ("me/a--b", "me/x.git", f"me/{'x' * 120}"):
        told = push(hub, export, "--repo", name, **home)
        assert told[0] == 2, told
        assert "must be the name of a repository" in told[2][0]
    hub.failing = 404
    assert "check the name and --revision" in push(hub, *asked, **home)[2][0]
    hub.failing = 400
    failed = push(hub, *asked, **home)
    assert failed[0] == 1
    assert "the hub does not take me/tiny-w4 (status 400: " in failed[2][0]
    assert hub.files == {}
    gone = push(hub, *asked, **home, HF_ENDPOINT="http://127.0.0.1:9")
    assert gone[0] == 1
    assert "the hub at http://127.0.0.1:9 does not answer (ConnectError): push again" in gone[2][0]
