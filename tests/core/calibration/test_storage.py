import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from normtweak_core.calibration import storage
from normtweak_core.calibration.sets import CalibrationSet
from normtweak_core.calibration.storage import load_calibration_set, save_calibration_set
from normtweak_core.errors import InputError


@pytest.fixture
def made(seeded):
    ids = torch.randint(2**31, (9, 33), generator=seeded(0))
    facts = {"scripts": ["latin", "cjk"], "documents": 12, "script_shares": {"latin": 0.75}}
    return CalibrationSet(ids, "generated", facts)


def test_a_set_comes_back_as_it_was_saved(tmp_path, made):
    path = tmp_path / "set.safetensors"
    save_calibration_set(path, made)
    loaded = load_calibration_set(path)
    assert torch.equal(loaded.input_ids, made.input_ids)
    assert (loaded.source, loaded.facts, loaded.sha256) == (made.source, made.facts, made.sha256)


def test_equal_sets_give_equal_bytes_and_nothing_else_in_the_folder(tmp_path, made):
    save_calibration_set(tmp_path / "a", made)
    reordered = CalibrationSet(made.input_ids, made.source, dict(reversed(made.facts.items())))
    save_calibration_set(tmp_path / "b", reordered)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_the_metadata_is_exactly_the_format(tmp_path, made):
    save_calibration_set(tmp_path / "a", made)
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert json.loads(file.get_tensor("facts").numpy().tobytes())["source"] == "generated"


def test_the_set_is_written_at_the_very_path_that_was_given(tmp_path, made, monkeypatch):
    # A stage gives a temporary path that is swept away after a kill; another would stay for ever.
    there = []

    def noting(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        there.extend(tmp_path.iterdir())

    monkeypatch.setattr(storage, "save_file", noting)
    save_calibration_set(tmp_path / ".tmp-a.safetensors", made)
    assert there == [tmp_path / ".tmp-a.safetensors"]


def test_what_is_no_calibration_set_is_refused(tmp_path, made):
    path = tmp_path / "a"
    with pytest.raises(InputError, match="does not exist: build it again"):
        load_calibration_set(path)
    save_calibration_set(path, made)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"must be a safetensors file; .*: build it again"):
        load_calibration_set(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="tensors input_ids and facts; found weight"):
        load_calibration_set(path)
