"""Every break of an export is noticed by the check that is named after it, and by no other."""

import json
import shutil

import pytest

from normtweak_core.export.config import ExportConfig
from normtweak_core.export.verification import reader
from normtweak_core.export.writer import write_export
from tests.broken_exports import (
    BREAKS,
    DOWN,
    WRONG_BEFORE,
    give_other_tokenizer,
    named,
    rewrite,
    sample,
    source_model,
)
from tests.tiny_exports import quantize_all, read_json


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return source_model(tmp_path_factory.mktemp("broken") / "model")


@pytest.fixture(scope="module", params=[True, False], ids=["symmetric", "asymmetric"])
def whole(request, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    layers = quantize_all(source, 4, 32, request.param)
    write_export(folder, source, layers, {}, ExportConfig(), details=sample())
    return folder


@pytest.fixture
def exported(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "out")


def test_a_whole_export_passes(exported):
    assert reader.examine(exported)["problems"] == []


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_noticed_by_its_check(exported, name):
    damage, expected = BREAKS[name]
    damage(exported)
    assert named(reader.examine(exported)) == expected


def test_a_tokenizer_that_was_wrong_before_the_export_is_noticed(source, tmp_path):
    wrong = give_other_tokenizer(shutil.copytree(source, tmp_path / "model"))
    layers = quantize_all(wrong, 4, 32, False)
    write_export(tmp_path / "out", wrong, layers, {}, ExportConfig(), details=sample())
    (problem,) = reader.examine(tmp_path / "out")["problems"]
    assert [(problem["what"], problem["name"])] == WRONG_BEFORE
    assert problem["expected"].startswith("<|endoftext|>def area(width, height):")
    assert problem["found"] != problem["expected"]


def test_scales_that_are_gone_are_noticed(exported):
    rewrite(exported, lambda tensors: tensors.pop(f"{DOWN}.weight_scale"))
    problems = []
    reader.check_scales(exported, read_json(exported / "normtweak.json")["tensors"], problems)
    assert problems == [{"what": "scales", "name": DOWN, "found": "no such tensor"}]


def test_an_export_that_says_nothing_of_scales_and_calibration_is_judged_by_the_rest(exported):
    path = exported / "normtweak.json"
    manifest = read_json(path)
    del manifest["calibration_sample"]
    for entry in manifest["tensors"].values():
        entry.pop("scales_sha256", None)
    path.write_text(json.dumps(manifest))
    assert reader.examine(exported)["problems"] == []
    BREAKS["shuffled scales"][0](exported)
    assert named(reader.examine(exported)) == BREAKS["shuffled scales"][1][1:]
