"""GPTQ exports in the environment that reads them, where `make reader-gptq` has made it."""

import subprocess

import pytest
from safetensors.torch import load_file, save_file

from normtweak_core.errors import VerificationError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats.checks import GPTQ_READER
from normtweak_core.export.verification import reader
from normtweak_core.export.verification.verify import reader_python, verify_export
from normtweak_core.export.writer import write_export
from tests.broken_exports import (
    BREAKS,
    WRONG_BEFORE,
    give_other_tokenizer,
    named,
    sample,
    source_model,
)
from tests.gptq_reader import REPOSITORY, needs_gptq_reader
from tests.tiny_exports import quantize_all, read_json, save_tiny_model, tiny_config

PYTHON = REPOSITORY / GPTQ_READER / "bin" / "python"
CASES = [
    ("llama", 2, 32, False),
    ("neox", 2, 32, False),
    ("llama", 3, 32, True),
    ("neox", 3, None, False),
    ("llama", 4, 64, True),
    ("neox", 4, 64, True),
    ("llama", 8, None, False),
]
# What `python -I reader.py` does, for several folders in one process.
EXAMINE = """
import json, os, pathlib, runpy, sys
os.environ["TORCH_COMPILE_DISABLE"] = "1"
reader = runpy.run_path(sys.argv[1])
folders = [pathlib.Path(name) for name in sys.argv[3:]]
reports = {folder.name: reader["examine"](folder) for folder in folders}
pathlib.Path(sys.argv[2]).write_text(json.dumps(reports))
"""

pytestmark = needs_gptq_reader


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(folder / name, tiny_config(name)) for name in ("llama", "neox")}


def export(out, source, bits, group_size, symmetric, left_float=()):
    layers = quantize_all(source, bits, group_size, symmetric)
    for name in left_float:
        del layers[name]
    write_export(out, source, layers, {}, ExportConfig(format="gptq"))
    return out


@pytest.fixture(scope="module")
def reports(tmp_path_factory, sources):
    """What the reader finds, by folder: one process opens all of them, for it is slow to start."""
    root = tmp_path_factory.mktemp("exports")
    folders = [
        export(root / "-".join(map(str, [family, *scheme])), sources[family], *scheme)
        for family, *scheme in CASES
    ]
    partial = ["model.layers.1.self_attn.k_proj"]
    folders.append(export(root / "partial", sources["llama"], 2, 32, False, partial))
    folders += broken_exports(root)
    subprocess.run(
        [PYTHON, "-I", "-c", EXAMINE, reader.__file__, root / "reports.json", *folders],
        cwd=root,
        check=True,
        capture_output=True,
    )
    return read_json(root / "reports.json")


def broken_exports(root):
    """A whole export, one of each break, and one whose tokenizer was wrong before."""
    layers, folders = None, []
    for name in ("whole", *BREAKS, "wrong before"):
        source = source_model(root / "models" / name)
        if name == "wrong before":
            give_other_tokenizer(source)
        layers = layers or quantize_all(source, 4, 32, True)
        folders.append(root / name)
        write_export(root / name, source, layers, {}, ExportConfig(format="gptq"), details=sample())
        if name in BREAKS:
            BREAKS[name][0](root / name)
    return folders


def test_every_width_is_read_bit_for_bit(reports):
    whole = {n: r for n, r in reports.items() if n not in BREAKS and n != "wrong before"}
    assert [name for name, report in whole.items() if report["problems"]] == []
    assert {"partial", "whole"} < set(whole)
    assert all(report["logits"]["argmax_agreement"] == 1 for report in whole.values())


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_noticed_by_its_check(reports, name):
    assert named(reports[name]) == BREAKS[name][1]


def test_a_tokenizer_that_was_wrong_before_the_export_is_noticed(reports):
    assert named(reports["wrong before"]) == WRONG_BEFORE


def test_a_fault_fails_verification_and_names_the_layer(tmp_path, sources):
    folder = export(tmp_path / "out", sources["llama"], 3, 32, False)
    name = "model.layers.0.mlp.down_proj"
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{name}.qzeros"][0, 0] ^= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=rf"weight of {name}\.weight: expected"):
        verify_export(folder, python=reader_python(folder, REPOSITORY))
