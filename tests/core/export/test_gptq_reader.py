"""GPTQ exports in the environment that reads them, where `make reader-gptq` has made it."""

import subprocess

import pytest
from safetensors.torch import load_file, save_file

from normtweak_core.errors import VerificationError
from normtweak_core.export import reader
from normtweak_core.export.checks import GPTQ_READER
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.verify import reader_python, verify_export
from normtweak_core.export.writer import write_export
from tests.broken_exports import (
    BREAKS,
    OTHER,
    WRONG_BEFORE,
    give_tokenizer,
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


def examined(folders, tmp_path):
    """What the reader finds in some folders, opened by one process."""
    subprocess.run(
        [PYTHON, "-I", "-c", EXAMINE, reader.__file__, tmp_path / "reports.json", *folders],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    return read_json(tmp_path / "reports.json")


def test_every_width_is_read_bit_for_bit(tmp_path, sources):
    folders = [
        export(tmp_path / "-".join(map(str, [family, *scheme])), sources[family], *scheme)
        for family, *scheme in CASES
    ]
    partial = ["model.layers.1.self_attn.k_proj"]
    folders.append(export(tmp_path / "partial", sources["llama"], 2, 32, False, partial))
    reports = examined(folders, tmp_path)
    assert {name: report["problems"] for name, report in reports.items()} == {
        folder.name: [] for folder in folders
    }
    assert all(report["logits"]["argmax_agreement"] == 1 for report in reports.values())


def test_every_break_is_noticed_by_its_check(tmp_path):
    config, layers = ExportConfig(format="gptq"), None
    folders = {}
    for name in ("whole", *BREAKS, "wrong before"):
        source = source_model(tmp_path / "models" / name)
        if name == "wrong before":
            give_tokenizer(source, OTHER)
        layers = layers or quantize_all(source, 4, 32, True)
        folders[name] = tmp_path / name
        write_export(folders[name], source, layers, {}, config, details=sample())
        if name in BREAKS:
            BREAKS[name][0](folders[name])
    found = examined(folders.values(), tmp_path)
    expected = {name: checks for name, (_, checks) in BREAKS.items()}
    expected |= {"whole": [], "wrong before": WRONG_BEFORE}
    assert {name: named(report) for name, report in found.items()} == expected


def test_a_fault_fails_verification_and_names_the_layer(tmp_path, sources):
    folder = export(tmp_path / "out", sources["llama"], 3, 32, False)
    name = "model.layers.0.mlp.down_proj"
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{name}.qzeros"][0, 0] ^= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=rf"weight of {name}\.weight: expected"):
        verify_export(folder, python=reader_python(folder, REPOSITORY))
