"""The corpus, the training that can be stopped, and the two models that ship."""

import csv
import json
import math
from dataclasses import asdict

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from normtweak_core.calibration.text import cut_windows
from normtweak_core.errors import InputError
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.source import reference_folder
from normtweak_core.model.structure import find_blocks, find_linears, linear_weight
from normtweak_core.reference.architectures import CONTEXT, REFERENCE_NAMES, model_config
from normtweak_core.reference.corpus import Document, documents
from normtweak_core.reference.train import (
    TrainingPlan,
    WindowOrder,
    evenly_spaced_windows,
    run_training,
)

TINY = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=CONTEXT,
)


def tiny_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(TINY, dtype=torch.float32)


def test_a_file_is_held_out_as_a_whole_and_by_its_name_alone(tmp_path):
    for name in ("abc.py", "sub/other.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('"""' + "Prose of this module. " * 20 + '"""\n' + "x = 1\n" * 60)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "skipped.py").write_text("y = 2\n" * 100)
    (tmp_path / "turtle.py").write_text("z = 3\n" * 100)
    found = [d for d in documents(tmp_path) if d.kind != "topic"]
    assert [(d.source, d.kind) for d in found] == [
        ("abc.py", "code"),
        ("abc.py", "docstrings"),
        ("sub/other.py", "code"),
        ("sub/other.py", "docstrings"),
    ]
    for source in ("abc.py", "sub/other.py"):
        assert len({d.held_out for d in found if d.source == source}) == 1
    assert Document("heapq.py", "code", "").held_out
    assert not Document("json/decoder.py", "code", "").held_out


def test_a_docstring_stands_in_one_document_only(tmp_path):
    module = """'The module, in a line.'
\x0c
import os


class A:
    r'''First.

    Second.
    '''

    def f(self): "On one line with the def."

    async def g(self):
        'Quoted simply.'
        return 'a string'  # kept
"""
    module += "# filler\n" * 40
    (tmp_path / "module.py").write_text(module)
    found = {d.kind: d.text for d in documents(tmp_path) if d.kind != "topic"}
    gone = module.replace("'The module, in a line.'\n", "")
    gone = gone.replace("    r'''First.\n\n    Second.\n    '''\n", "")
    assert found["code"] == gone.replace("        'Quoted simply.'\n", "")
    assert "docstrings" not in found  # together they are shorter than the shortest document


def test_an_epoch_visits_every_window_once_and_the_next_in_another_order():
    order = WindowOrder(num_tokens=CONTEXT * 12 + 1, batch=4, seed=3)
    assert order.steps_per_epoch == 3
    epochs = [
        [start for i in range(3) for start in order.starts(3 * epoch + i)] for epoch in range(2)
    ]
    for visited in epochs:
        assert sorted(visited) == [CONTEXT * i for i in range(12)]
    assert epochs[0] != epochs[1]


def test_the_learning_rate_rises_then_falls_to_a_twentieth():
    plan = TrainingPlan(steps=100, warmup=10, lr=1.0)
    assert plan.lr_at(0) == pytest.approx(0.1)
    assert plan.lr_at(10) == pytest.approx(1.0)
    assert plan.lr_at(100) == pytest.approx(0.05)


def test_training_that_was_stopped_ends_in_the_same_weights(tmp_path, seeded):
    tokens = torch.randint(0, 64, (CONTEXT * 6 + 1,), generator=seeded())
    whole, stopped = tiny_model(), tiny_model()
    plan = TrainingPlan(steps=4, batch=1, warmup=1, save_every=2)
    run_training(whole, tokens, plan, tmp_path / "whole.safetensors")

    class StopError(Exception):
        pass

    def stop_at_third_forward(*_):
        calls.append(1)
        if len(calls) == 4:
            raise StopError

    calls: list[int] = []
    handle = stopped.register_forward_pre_hook(stop_at_third_forward)
    with pytest.raises(StopError):
        run_training(stopped, tokens, plan, tmp_path / "stopped.safetensors")
    handle.remove()
    fresh = tiny_model()
    run_training(fresh, tokens, plan, tmp_path / "stopped.safetensors")
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, fresh.get_parameter(name)), name
    assert not torch.equal(next(whole.parameters()), next(tiny_model().parameters()))


def test_a_state_of_another_plan_or_text_is_refused(tmp_path, seeded):
    tokens = torch.randint(0, 64, (CONTEXT * 2 + 1,), generator=seeded())
    state = tmp_path / "state.safetensors"
    run_training(tiny_model(), tokens, TrainingPlan(steps=1, batch=1, warmup=1), state)
    message = "goes on only with the plan and the text it began with"
    with pytest.raises(InputError, match=message):
        run_training(tiny_model(), tokens, TrainingPlan(steps=2, batch=1, warmup=1), state)
    with pytest.raises(InputError, match=message):
        run_training(tiny_model(), tokens + 1, TrainingPlan(steps=1, batch=1, warmup=1), state)


def test_windows_are_spread_over_the_stream():
    windows = evenly_spaced_windows(torch.arange(CONTEXT * 10 + 1), 4)
    assert windows[:, 0].tolist() == [0, 3 * CONTEXT, 6 * CONTEXT, 9 * CONTEXT]


def test_an_unknown_reference_is_refused_by_name():
    with pytest.raises(ValueError, match="must be one of llama, neox; got 'gpt'"):
        model_config("gpt")


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_a_shipped_model_has_the_promised_shape(name):
    folder = reference_folder(name)
    model = load_causal_lm(folder, torch.float32, "cpu")
    assert sum(p.numel() for p in model.parameters()) >= 3_000_000
    assert model.config.max_position_embeddings == CONTEXT
    blocks = find_blocks(model).modules
    assert len(blocks) >= 4
    for block in blocks:
        for linear in find_linears(block).values():
            out_width, in_width = linear_weight(linear).shape
            assert in_width % 256 == 0
            assert out_width % 32 == 0
    if name == "llama":
        assert model.config.tie_word_embeddings
        assert not any(key.endswith("bias") for key, _ in model.named_parameters())


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_a_shipped_model_predicts_its_held_out_text_about_as_its_card_says(name):
    folder = reference_folder(name)
    model, tokenizer = (
        load_causal_lm(folder, torch.float32, "cpu"),
        AutoTokenizer.from_pretrained(folder),
    )
    lines = (folder / "held-out.jsonl").read_text().splitlines()
    windows = cut_windows([json.loads(line)["text"] for line in lines], tokenizer, CONTEXT)
    with torch.no_grad():
        chosen = windows[:: len(windows) // 16][:16]
        logits = model(chosen, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), chosen[:, 1:].flatten())
    card = (folder / "README.md").read_text()
    stated = float(card.partition("held-out perplexity | ")[2].split(" ")[0])
    assert math.log(stated) == pytest.approx(loss.item(), abs=0.35)
    assert loss.item() < 0.6 * math.log(model.config.vocab_size)


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_no_shipped_held_out_document_was_trained_on(name):
    folder = reference_folder(name)
    with (folder / "corpus.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    held_out = {row["source"] for row in rows if row["split"] == "held-out"}
    assert held_out.isdisjoint(row["source"] for row in rows if row["split"] == "training")
    shipped = [json.loads(line) for line in (folder / "held-out.jsonl").read_text().splitlines()]
    assert {document["source"] for document in shipped} == held_out


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_a_shipped_model_is_what_its_command_makes_and_not_overfitted(name):
    folder = reference_folder(name)
    card = (folder / "README.md").read_text()
    losses = [
        float(card.partition(f"| {split} loss | ")[2].split(" ")[0])
        for split in ("held-out", "training")
    ]
    assert losses[0] - losses[1] < 0.2
    assert f"Plan: `{json.dumps(asdict(TrainingPlan()))}`" in card
    shipped, wanted = AutoConfig.from_pretrained(folder), model_config(name)
    left_out = {"transformers_version", "dtype", "architectures", "_name_or_path"}
    assert {k: v for k, v in shipped.to_dict().items() if k not in left_out} == {
        k: v for k, v in wanted.to_dict().items() if k not in left_out
    }
