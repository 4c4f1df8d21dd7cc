"""Every mistake a person can make: its exit code, its sentence, its price, and no trace on disk."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from flows.checks.preflight import preflight
from flows.recipes.quantize import Recipe
from tests.flows import command_mistakes, input_mistakes, mistakes, service_mistakes
from tests.flows.tiny_model import (
    ablation_values,
    recipe_values,
    ternary_values,
    variables_of,
    write_model,
    write_project,
)

# Runs each case in one process that must never import anything heavy.
DRIVER = """
import contextlib, io, json, os, shutil, sys, time
from collections import namedtuple
usage = shutil.disk_usage
for case in json.load(open(sys.argv[1])):
    kept = dict(os.environ)
    os.environ |= {"NORMTWEAK_HOME": case["home"]} | case["variables"]
    free = case["free"]
    shutil.disk_usage = usage if free is None else (
        lambda path, free=free: namedtuple("usage", "total used free")(free, 0, free))
    text, shown = io.StringIO(), io.StringIO()
    began = time.process_time()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(shown):
        from flows.cli import main
        code = main(case["arguments"])
    heavy = sorted({"torch", "prefect", "mlflow", "transformers", "pandas"} & set(sys.modules))
    os.environ.clear()
    os.environ.update(kept)
    print(json.dumps([case["name"], code, text.getvalue(), shown.getvalue(),
                      time.process_time() - began, heavy]))
"""

# Files that models with something wrong with their tokenizer lack.
TOKENIZERS = {
    "speechless": ["tokenizer.json", "tokenizer_config.json"],
    "wordless": ["tokenizer.json"],
    "unsettled": ["tokenizer_config.json"],
    "torn-words": [],
    "no-words": [],
    "odd-words": [],
    "coded-words": [],
}
OPTIONS = mistakes.OPTIONS | input_mistakes.OPTIONS
COMMANDS = command_mistakes.COMMANDS | input_mistakes.COMMANDS
PLACES = command_mistakes.PLACES | input_mistakes.PLACES
SERVICES = service_mistakes.SERVICES
CASES = [*OPTIONS, *COMMANDS, *PLACES, *SERVICES]


def in_eight_bits(weights):
    """Store one weight as a quantized model does."""
    tensors = load_file(weights)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = (tensors[name] * 100).astype(numpy.int8)
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("mistakes")
    write_project(place)
    (place / "empty.txt").write_text("")
    (place / "profiles.toml").write_text(service_mistakes.PROFILES)
    for name, content in input_mistakes.FILES.items():
        (place / name).write_text(content)
    (place / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (place / "other.jsonl").write_text('{"body": "x"}\n')
    (place / "torn.yaml").write_text("name: [a,\n")
    (place / "twice.yaml").write_text("name: a\nseed: 1\nseed: 2\n")
    (place / "nameless.yaml").write_text("seed: 1\n")
    (place / "ablation.yaml").write_text(yaml.safe_dump(ablation_values(place)))
    (place / "ternary.yaml").write_text(yaml.safe_dump(ternary_values(place)))
    marked = write_model(place / "marked-words") / "tokenizer_config.json"
    marked.write_text(marked.read_text(), encoding="utf-8-sig")
    write_model(place / "odd-rows", inner=130)
    write_model(place / "no-blocks", blocks=0)
    write_model(place / "experts", num_local_experts=8)
    for name, absent in TOKENIZERS.items():
        model = write_model(place / name)
        for file in absent:
            (model / file).unlink()
    (place / "wordless" / "special_tokens_map.json").write_text("{}")  # no words in it
    (place / "torn-words" / "tokenizer.json").write_text('{"model": {"vocab"')
    (place / "no-words" / "tokenizer.json").write_text("{}")
    (place / "odd-words" / "tokenizer_config.json").write_text("[]")
    coded = '{"auto_map": {"AutoTokenizer": ["words.Words", null]}}'
    (place / "coded-words" / "tokenizer_config.json").write_text(coded)
    write_model(place / "nameless", architectures=None)
    in_eight_bits(write_model(place / "eight-bits") / "model.safetensors")
    write_model(place / "packed", quantization_config={"quant_method": "gptq"})
    shutil.copytree(place / "model", place / "torn")
    with (place / "torn" / "model.safetensors").open("r+b") as file:
        file.truncate(300_000)
    (place / "pickled").mkdir()
    shutil.copy(place / "model" / "config.json", place / "pickled")
    (place / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    return place


@pytest.fixture(scope="module")
def answers(folder):
    """What each case gave: exit code, standard error and output, CPU seconds, heavy modules."""
    recipe, home = str(folder / "recipe.yaml"), str(folder / "state")
    cases = []
    for name, (options, _) in OPTIONS.items():
        arguments = ["quantize", recipe, *options.format(folder).split()]
        cases.append({"name": name, "arguments": arguments, "home": home, "free": None})
    for name, (line, _) in COMMANDS.items():
        arguments = line.format(folder).split()
        cases.append({"name": name, "arguments": arguments, "home": home, "free": None})
    for name, (place, free, _) in PLACES.items():
        arguments = ["quantize", recipe]
        cases.append(
            {"name": name, "arguments": arguments, "home": place.format(folder), "free": free}
        )
    for name, (line, variables, _) in SERVICES.items():
        arguments = line.format(folder).split()
        given = {key: value.format(folder) for key, value in variables.items()}
        case = {"name": name, "arguments": arguments, "home": home, "free": None}
        cases.append(case | {"variables": given})
    cases = [{"variables": {}} | case for case in cases]
    (folder / "cases.json").write_text(json.dumps(cases))
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder / "cases.json")],
        cwd=Path(__file__).parents[2],
        env=_without_ours(),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert sorted(folder.rglob("*")) == before, "a mistake left something behind"
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row[0]: row[1:] for row in rows}


def _without_ours() -> dict[str, str]:
    ours = ("NORMTWEAK_", "PREFECT_", "MLFLOW_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_answered_in_one_line(name, answers, folder):
    code, text, shown, seconds, heavy = answers[name]
    sentence = {**OPTIONS, **COMMANDS, **PLACES, **SERVICES}[name][-1]
    sentence = sentence.replace("{0}", str(folder))  # sentences hold other braces too
    assert text == f"normtweak: {sentence}\n"
    assert code == 2
    assert shown == ""
    assert heavy == []
    assert seconds < 2


def test_the_recipe_of_these_tests_is_accepted_as_it_is(folder, tmp_path):
    recipe = Recipe.load(folder / "recipe.yaml")
    assert recipe.model_dump(exclude_unset=True) == recipe_values(folder)
    with variables_of(tmp_path / "state") as home:
        ready = preflight(recipe, home)
    assert ready.warnings == []
    assert ready.length == 16
    assert not home.exists()
