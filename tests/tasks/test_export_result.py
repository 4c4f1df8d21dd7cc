"""The record of an export holds only while all its files do, those outside the payload included."""

import dataclasses

import pytest
from pydantic import ValidationError

from normtweak_core.export.formats.scheme import TernaryScheme
from normtweak_core.export.record import ExportRecord
from tasks.results import ExportResult
from tasks.stages.export import exported


@pytest.fixture
def record(root):
    folder = root / "exports" / "tiny"
    for name in ("config.json", "normtweak.json", "verify/probe.safetensors", "gguf/model.gguf"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    consumers = {
        "transformers": {"file": "."},
        "llama.cpp": {"file": "gguf/model.gguf", "sha256": "not read here"},
    }
    scheme = TernaryScheme(rms_norm=True, rms_norm_eps=1e-5)
    return ExportRecord(folder, "bitnet", "float16", scheme, "0" * 64, 11, 2.0, consumers)


@pytest.mark.parametrize("lost", ["config.json", "gguf/model.gguf", "verify/probe.safetensors"])
def test_a_lost_or_altered_file_makes_the_record_invalid(record, lost):
    stored = exported(record).model_dump(mode="json")
    assert ExportResult.model_validate(stored) == exported(record)
    (record.folder / lost).write_text("something else")
    with pytest.raises(ValidationError, match=lost):
        ExportResult.model_validate(stored)
    (record.folder / lost).unlink()
    with pytest.raises(ValidationError, match="is missing"):
        ExportResult.model_validate(stored)


def test_an_export_that_only_transformers_opens_has_nothing_beside_it(record):
    plain = dataclasses.replace(record, consumers=None)
    assert exported(plain).beside == []
    assert [one.path for one in exported(record).beside] == ["exports/tiny/gguf/model.gguf"]
