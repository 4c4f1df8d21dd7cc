"""Verification as users run it: a fresh process, its errors, and its end when ours is killed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from normtweak_core.errors import InputError, VerificationError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.verification.verify import (
    read_manifest,
    reader_python,
    seconds_allowed,
    verify_export,
)
from normtweak_core.export.writer import write_export
from normtweak_core.scratch import scratch_folder, sweep
from tests.tiny_exports import quantize_all, save_tiny_model, tiny_config

UP = "gpt_neox.layers.1.mlp.dense_h_to_4h"


@pytest.fixture(scope="module")
def neox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    source = save_tiny_model(folder / "neox", tiny_config("neox"))
    layers = quantize_all(source, 2, 32, False)
    write_export(folder / "out", source, layers, {}, ExportConfig())
    return folder / "out"


def copy(folder, to):
    for path in sorted(folder.rglob("*")):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.write_bytes(path.read_bytes())
    return to


def test_a_real_model_per_channel_is_what_was_quantized(tmp_path, shared):
    source = shared / "models" / "stories260K"
    layers = quantize_all(source, 3, None, False)
    record = write_export(tmp_path / "out", source, layers, {}, ExportConfig())
    report = verify_export(tmp_path / "out")
    assert report.payload_sha256 == record.payload_sha256
    assert report.format == "compressed-tensors"
    assert (report.num_quantized, report.num_tensors) == (35, 47)
    assert (report.logit_difference, report.argmax_agreement) == (0.0, 1.0)
    assert report.tokenizer
    assert set(report.reader_versions) == {"torch", "transformers"}


def test_a_mismatch_is_an_error_that_names_the_first_layers(tmp_path, neox):
    folder = copy(neox, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{UP}.weight_packed"][0, 0] ^= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    message = (
        rf"weight of {UP}\.weight: expected [0-9a-f]{{16}}…, found .*file of model\.safetensors"
    )
    with pytest.raises(VerificationError, match=message):
        verify_export(folder)


def test_one_of_each_check_that_fails_is_named_however_many_fail(tmp_path, neox):
    folder = copy(neox, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.endswith("weight_scale"):
            tensors[name] = tensors[name].roll(1, dims=0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(VerificationError) as caught:
        verify_export(folder)
    message = str(caught.value)
    assert (
        "checks that fail: scales (8), weight (8), file (2), tokenizer (1), logits (1)" in message
    )
    assert "scales of gpt_neox.layers.0.attention.dense: expected " in message
    assert "weight of gpt_neox.layers.0.attention" in message
    assert "file of model.safetensors: expected " in message
    assert "tokenizer of loading: " in message


def test_a_file_that_was_added_is_named(tmp_path, neox):
    folder = copy(neox, tmp_path / "out")
    (folder / "added_tokens.json").write_text("{}")
    message = r"every recorded file is unchanged: added_tokens\.json was added\. Export again"
    with pytest.raises(VerificationError, match=message):
        verify_export(folder)


def test_a_truncated_file_is_an_error_that_names_it(tmp_path, neox):
    folder = copy(neox, tmp_path / "out")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = (
        r"the reader must open .*: .* header: .*\. Since it was written model\.safetensors was "
        r"altered: export again\.$"
    )
    with pytest.raises(VerificationError, match=message):
        verify_export(folder)


def test_a_tensor_that_stands_twice_is_named(tmp_path, neox):
    folder = copy(neox, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    key = f"{UP}.weight_scale"
    twice = {key: tensors[key].roll(1, dims=0).contiguous()}
    save_file(twice, folder / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    message = (
        rf"scales of {UP}: expected .*\. Since it was written "
        r"model-00002-of-00002\.safetensors was added: export again\.$"
    )
    with pytest.raises(VerificationError, match=message):
        verify_export(folder)


def test_a_reader_that_fails_is_an_error_with_its_last_line(tmp_path, neox):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    message = r"the reader must open .* code 1: ModuleNotFoundError: No module named 'torch'"
    with pytest.raises(VerificationError, match=message):
        verify_export(neox, python=tmp_path / "bare" / "bin" / "python")


def test_a_reader_that_takes_too_long_is_ended(neox):
    message = (
        r"must finish within 0\.2 s; it did not\. Give it longer with export\.verify_timeout in a "
        "recipe, or normtweak verify --timeout"
    )
    with pytest.raises(VerificationError, match=message):
        verify_export(neox, timeout=0.2)


def test_a_reader_may_take_longer_where_there_is_more_to_read(neox):
    manifest = read_manifest(neox)
    small = seconds_allowed(neox, manifest)
    assert 1800 < small < 1801  # some kilobytes
    manifest["tensors"]["x"] = {"shape": [70_000, 100_000]}  # seven billion weights
    assert seconds_allowed(neox, manifest) - small == 14_000


def test_another_export_is_advised_only_where_this_one_was_altered(tmp_path, neox):
    folder = copy(neox, tmp_path / "out")
    path = folder / "normtweak.json"
    manifest = json.loads(path.read_text())
    name = next(iter(manifest["tensors"]))
    manifest["tensors"][name]["sha256"] = "0" * 64  # as if the reader found something else
    path.write_text(json.dumps(manifest))
    same = r"so are the versions: another export would give the same\. .* report it\.$"
    with pytest.raises(VerificationError, match=same):
        verify_export(folder)
    manifest["versions"]["transformers"] = "4.0.0"
    path.write_text(json.dumps(manifest))
    other = r"as they were written, by torch .*, transformers 4\.0\.0; the reader has torch .*: use"
    with pytest.raises(VerificationError, match=other):
        verify_export(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    altered = r"Files were altered since they were written: export again\.$"
    with pytest.raises(VerificationError, match=altered):
        verify_export(folder)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"an export folder holds normtweak\.json"):
        verify_export(tmp_path)


def test_our_own_interpreter_reads_compressed_tensors(tmp_path, neox):
    assert reader_python(neox, tmp_path) == Path(sys.executable)


def test_an_interrupted_reader_of_gptq_is_refused_and_an_absent_or_complete_one_is_named(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "normtweak.json").write_text(
        '{"export": {"format": "gptq"}, "tensors": {}, "probe": {}}'
    )
    python = tmp_path / ".venv-reader-gptq" / "bin" / "python"
    assert reader_python(folder, tmp_path) == python
    python.parent.mkdir(parents=True)
    python.touch()
    with pytest.raises(InputError, match=r"complete \.venv-reader-gptq; .* `make reader-gptq`\."):
        reader_python(folder, tmp_path)
    (tmp_path / ".venv-reader-gptq" / ".complete").touch()
    assert reader_python(folder, tmp_path) == python


def test_a_missing_interpreter_is_refused_with_what_to_do(tmp_path, neox):
    with pytest.raises(InputError, match="run `make reader-gptq`"):
        verify_export(neox, python=tmp_path / "python")


def test_the_reader_dies_with_the_process_that_started_it_and_its_folder_is_swept(
    neox, tmp_path, monkeypatch
):
    code = f"""
        from pathlib import Path
        from normtweak_core.export.verification.verify import verify_export
        verify_export(Path({str(neox)!r}))
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    variables = os.environ | {"TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=variables)
    try:
        child = wait_for(lambda: psutil.Process(parent.pid).children())[0]
        # Well past its start, and seconds from its end: transformers comes after torch.
        wait_for(lambda: any("libtorch" in part.path for part in child.memory_maps()))
        assert sweep() == []  # its folder is in use
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=2)
    (left,) = tmp_path.glob("normtweak-scratch-verify-*")
    with scratch_folder("verify") as folder:  # what the next verification does
        assert list(tmp_path.iterdir()) == [folder] != [left]
    assert list(tmp_path.iterdir()) == []


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return result
