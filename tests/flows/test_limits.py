"""Limits of a recipe: a run keeps within them with the same bytes, or is refused by name."""

import dataclasses
import os

import pytest
import torch

from flows.checks.limits import check_disk_limit, check_memory, largest
from flows.checks.machine import model_shape
from flows.checks.memory import FIXED_MEMORY, memory_bytes, whole_bytes
from flows.pipeline.limits import THREADS, within
from flows.recipes.limits import LimitsConfig
from flows.recipes.quantize import Recipe
from flows.recipes.ternary import TernaryRecipe
from normtweak_core import quantize
from normtweak_core.errors import InputError
from normtweak_core.export.formats.checks import LinearShape
from normtweak_core.memory import available_memory, held_bytes, limited
from normtweak_core.quantization.linears import solve
from tests.tiny_exports import save_tiny_model, tiny_config

GIB = 1 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("limits") / "model", tiny_config("llama"))


def recipe(model, tmp_path, **limits):
    text = tmp_path / "text.txt"
    text.write_text("A line of words that says little. " * 400)
    return Recipe.parse(
        {
            "name": "limits",
            "model": {"source": str(model)},
            "calibration": {"source": "text", "path": str(text), "samples": 16, "length": 32},
            "quantization": {"bits": 4, "group_size": 32, "symmetric": True},
            "norm_tweak": {"enabled": False},
            "final_tune": {"enabled": False},
            "evaluation": {"perplexity": {"path": str(text), "max_tokens": 256}},
            "limits": limits,
        }
    )


def test_sizes_are_written_as_people_write_them(model, tmp_path):
    limits = recipe(model, tmp_path, memory="1.5 GiB", disk="2GB", threads=3).limits
    assert (limits.memory, limits.disk, limits.threads) == (3 * GIB // 2, 2 * 10**9, 3)
    for value in ("many", "2 parsec"):
        message = f"limits.memory must be a number of bytes, such as 2GiB; found '{value}'"
        with pytest.raises(InputError, match=message):
            recipe(model, tmp_path, memory=value)
    with pytest.raises(InputError, match="threads must be at least 1"):
        recipe(model, tmp_path, threads=0)


def test_what_is_free_is_no_more_than_the_limit_leaves():
    resident = held_bytes()
    with limited(resident + 64 * 2**20):
        assert abs(available_memory("cpu") - 64 * 2**20) < 32 * 2**20
        with limited(1):
            assert available_memory("cpu") == 0
        assert available_memory("cpu") > 0
    assert available_memory("cpu") > 64 * 2**20


def test_threads_are_those_of_the_recipe_and_then_those_before():
    before, variable = torch.get_num_threads(), os.environ.get(THREADS)
    try:
        os.environ[THREADS] = "2"
        with within(LimitsConfig(threads=1)):
            assert (torch.get_num_threads(), os.environ[THREADS]) == (1, "1")
        assert (torch.get_num_threads(), os.environ[THREADS]) == (2, "2")
    finally:
        torch.set_num_threads(before)
        if variable is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = variable


@pytest.mark.parametrize("wanted", [8, 9, 777, 1000])
def test_the_largest_that_fits_is_found(wanted):
    assert largest(8, 1000, lambda value: value <= wanted) == wanted
    assert largest(8, 1000, lambda value: False) is None


def test_a_stage_that_needs_more_is_refused_with_the_largest_setting_that_fits(model, tmp_path):
    wide = recipe(model, tmp_path).model_dump(mode="json")
    wide["calibration"] |= {"samples": 100_000, "length": 64}
    wide["limits"]["memory"] = GIB
    asked, shape = Recipe.parse(wide), model_shape(model)

    def needs(one):
        return memory_bytes(one, shape, 64)

    def calibrated(one):
        return {"calibrate": needs(one)["calibrate"]}

    message = r"limits\.memory, 1\.1 GB; calibrate needs about"
    with pytest.raises(InputError, match=message) as caught:
        check_memory(asked, "quantize", "calibration", needs)
    fits = int(str(caught.value).rstrip(".").rpartition(" ")[2])
    assert "the largest calibration.samples that fits is" in str(caught.value)
    for samples, is_accepted in ((fits, True), (fits + 1, False)):
        wide["calibration"]["samples"] = samples
        if is_accepted:
            check_memory(Recipe.parse(wide), "quantize", "calibration", calibrated)
        else:
            with pytest.raises(InputError):
                check_memory(Recipe.parse(wide), "quantize", "calibration", calibrated)
    wide["limits"]["memory"] = 561 * 2**20
    wide["calibration"] |= {"source": "generated", "path": None}
    message = "calibrate needs about .*: raise the limit, or take calibration.source text"
    with pytest.raises(InputError, match=message):
        check_memory(Recipe.parse(wide), "quantize", "calibration", needs)


def test_a_model_that_writes_is_counted_as_far_as_a_limit_lets_it_be_held(model, tmp_path):
    linears = {"one": LinearShape(GIB // 4, 2), "other": LinearShape(GIB // 4, 2)}
    tiny = model_shape(model)
    shape = dataclasses.replace(tiny, num_blocks=8, parameters=GIB, linears=linears)
    free = 2 * GIB
    spread = recipe(model, tmp_path, memory=FIXED_MEMORY + free)
    # Four GiB in float32: half of what is free, and the block at hand.
    assert whole_bytes(spread, shape) == free // 2 + GIB // 2
    small = dataclasses.replace(shape, parameters=GIB // 4)
    assert whole_bytes(spread, small) == GIB
    # Beside a training that leaves nothing no block stays.
    assert whole_bytes(spread, shape, beside=free) == GIB // 2


def test_other_ways_out_are_named(tmp_path):
    asked = TernaryRecipe.parse({"name": "t", "limits": {"memory": 100}})
    for stage, way in (
        ("training", r"with ternary\.batch 1 it does not fit either, so raise the limit"),
        ("surgery", "200 bytes: raise the limit"),
        ("evaluate tasks", "or score no tasks"),
    ):
        with pytest.raises(InputError, match=way):
            check_memory(asked, "ternary", "ternary.data", lambda one, s=stage: {s: 200})


def test_a_run_that_may_write_more_is_refused(model, tmp_path):
    asked = recipe(model, tmp_path, disk=100)
    message = (
        r"no more than limits\.disk, 100 bytes; this one may write 121 bytes, 120 bytes of it "
        "streams: raise the limit"
    )
    with pytest.raises(InputError, match=message):
        check_disk_limit(asked, {"streams": 120, "logs": 1})
    check_disk_limit(asked, {"streams": 100})


def test_a_run_within_its_limits_writes_the_same_bytes(engine, model, tmp_path, monkeypatch):
    from flows.quantize import quantize as flow

    held, counted = [], solve.held_micro_batches
    monkeypatch.setattr(
        solve, "held_micro_batches", lambda *a: held.append(counted(*a)) or held[-1]
    )
    free = quantize(
        model,
        bits=4,
        group_size=32,
        symmetric=True,
        calibration=recipe(model, tmp_path).calibration,
        norm_tweak=False,
        final_tune=False,
        progress=False,
    )
    assert all(held)
    held.clear()
    # The run has outgrown such a limit before its first block; it was accepted as one that fits.
    monkeypatch.setattr("flows.pipeline.run.within", lambda limits: limited(1))
    capped = flow(recipe(model, tmp_path, memory=GIB))
    assert held
    assert not any(held)
    assert capped["export_sha256"] == free.report.export_sha256
