"""An export that was broken inside a run stops it: named by its check, and nothing registered."""

import functools
import itertools
import json
import os
import shutil

import pytest
from mlflow import MlflowClient

from flows.recipes.quantize import Recipe
from normtweak_core.errors import InputError, VerificationError
from normtweak_core.export import writer
from tasks.engine.events import read_events
from tests.broken_exports import (
    BREAKS,
    DOWN,
    MODELS,
    UP,
    give_other_tokenizer,
    give_tokenizer,
    source_model,
)
from tests.gptq_reader import needs_gptq_reader

NAME = "tiny-broken"
write_export = writer.write_export


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return source_model(tmp_path_factory.mktemp("broken") / "model")


@pytest.fixture(scope="module")
def run(model, home):
    """A function that carries out the recipe; nothing but its export is made again."""
    from flows.quantize import quantize

    text = model.parent / "text.txt"
    text.write_text("def area(width, height):\n    return width * height\n" * 12)
    recipe = {
        "name": NAME,
        "model": {"source": str(model)},
        "calibration": {"source": "text", "path": str(text), "samples": 8, "length": 16},
        "quantization": {"bits": 4, "group_size": 32},
        "norm_tweak": {"enabled": False},
        "final_tune": {"enabled": False},
        "evaluation": {"perplexity": {"path": str(text), "max_tokens": 64}},
    }

    lengths = itertools.count(100)

    def carry_out(form: str = "compressed-tensors") -> dict:
        # Part of the key of an export and of nothing before it.
        settings = {"max_length": next(lengths)}
        (model / "generation_config.json").write_text(json.dumps(settings))
        return quantize(Recipe.parse(recipe | {"export": {"format": form}}))

    return carry_out


def registered() -> tuple[list[str], dict[str, str]]:
    """Return the versions there are, and where the aliases point."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    client = MlflowClient(uri, uri)
    versions = sorted(found.version for found in client.search_model_versions(f"name = '{NAME}'"))
    return versions, dict(client.get_registered_model(NAME).aliases)


@pytest.fixture(scope="module")
def before(run):
    """The registry after a run that nothing disturbed."""
    assert run()["registered"]["version"] == 1
    found = registered()
    assert set(found[1].values()) == set(found[0])
    return found


def stopped(home, run, form="compressed-tensors", error=VerificationError) -> tuple[str, set[str]]:
    """Return what a run says that must stop, and the stages it began anew."""
    known = len(read_events(home))
    with pytest.raises(error) as caught:
        run(form)
    return str(caught.value), {event["event"] for event in read_events(home)[known:]}


# Which checks fail, and the place that the message names.
NOTICED = {
    "one flipped nibble": ("weight (1), file (1)", f"weight of {UP}.weight: expected "),
    "shuffled scales": ("scales (1), weight (1), file (1)", f"scales of {DOWN}: expected "),
    "another tokenizer": ("file (1), tokenizer (6)", "tokenizer of ids: expected "),
}


@pytest.mark.parametrize("name", NOTICED)
def test_a_break_after_writing_stops_the_run(home, run, before, monkeypatch, name):
    def write_and_break(out, *args, **named):
        record = write_export(out, *args, **named)
        BREAKS[name][0](out)
        return record

    monkeypatch.setattr(writer, "write_export", write_and_break)
    message, happened = stopped(home, run)
    checks, place = NOTICED[name]
    assert f"checks that fail: {checks}" in message
    assert place in message
    assert {"export", "verify"} <= happened
    assert happened.isdisjoint({"block", "evaluate", "register"})
    assert registered() == before


def written_with(give):
    """Return a way to write an export that agrees with itself, with the tokenizer that is given."""

    def write(out, source, *args, **named):
        wrong = shutil.copytree(source, out.parent / f"{out.name}-source")
        try:
            return write_export(out, give(wrong), *args, **named)
        finally:
            shutil.rmtree(wrong)

    return write


def test_a_tokenizer_that_was_wrong_when_the_export_was_written_stops_the_run(
    home, run, before, monkeypatch
):
    monkeypatch.setattr(writer, "write_export", written_with(give_other_tokenizer))
    message, happened = stopped(home, run)
    assert "checks that fail: tokenizer (1): tokenizer of calibration text: expected " in message
    assert happened.isdisjoint({"evaluate", "register"})
    assert registered() == before


def test_a_tokenizer_that_only_begins_texts_otherwise_stops_the_run(home, run, before, monkeypatch):
    # Of the NeoX: no token in front of a text, all else as here.
    give = functools.partial(give_tokenizer, model=MODELS / "neox")
    monkeypatch.setattr(writer, "write_export", written_with(give))
    message, happened = stopped(home, run, error=InputError)
    assert "both models must read the same tokens" in message
    assert "register" not in happened
    assert registered() == before


def test_a_tokenizer_that_is_replaced_during_the_run_stops_it(
    home, run, before, monkeypatch, model
):
    def replace_and_write(out, source, *args, **named):
        return write_export(out, give_other_tokenizer(source), *args, **named)

    whole = {file.name: file.read_bytes() for file in model.iterdir()}
    monkeypatch.setattr(writer, "write_export", replace_and_write)
    try:
        message, happened = stopped(home, run)
    finally:
        for name, content in whole.items():
            (model / name).write_bytes(content)
    assert message == (
        f"the tokenizer of {model} must be the one this run began with; since then "
        "tokenizer.json changed, so that the export would hold another. Restore it, or start again."
    )
    assert "verify" not in happened
    assert registered() == before


@needs_gptq_reader
def test_every_break_of_a_gptq_export_stops_the_run(home, run, before, monkeypatch):
    def write_and_break(*args, **named):
        record = written_with(give_other_tokenizer)(*args, **named)
        BREAKS["one flipped nibble"][0](args[0])
        BREAKS["shuffled scales"][0](args[0])
        return record

    monkeypatch.setattr(writer, "write_export", write_and_break)
    message, happened = stopped(home, run, "gptq")
    assert "checks that fail: scales (1), weight (2), file (1), tokenizer (1)" in message
    assert f"scales of {DOWN}: expected " in message
    assert "tokenizer of calibration text: expected " in message
    assert happened.isdisjoint({"evaluate", "register"})
    assert registered() == before
