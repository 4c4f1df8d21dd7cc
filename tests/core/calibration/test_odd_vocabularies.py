"""Tokenizers whose size is not that of the model's vocabulary, in one way or another."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig, PreTrainedTokenizerFast

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.first_token import (
    ordinary_token_ids,
    start_distribution,
    vocabulary_size,
)
from normtweak_core.calibration.generate import generate_windows
from normtweak_core.calibration.quality import quality_report, window_nll
from normtweak_core.calibration.sets import build_calibration_set
from normtweak_core.errors import InputError
from tests.core.calibration.conftest import WORDS

LENGTH = 48
NAMES = sorted(set(WORDS))[:40]


def tokenizer_of(ids, **special):
    """A tokenizer of whole words with these ids; the first words are the special ones."""
    words = [*special.values(), *NAMES]
    vocabulary = {word: i for word, i in zip(dict.fromkeys(words), ids, strict=False)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=NAMES[0]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def model_of(rows, kind=LlamaConfig, **changes):
    shared = {"hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
    if kind is LlamaConfig:
        shared |= {"intermediate_size": 48, "num_attention_heads": 4}
    shared |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = kind(vocab_size=rows, **shared | changes)
        return AutoModelForCausalLM.from_config(config).eval()


CASES = {
    "without special tokens": (tokenizer_of(range(40)), 40),
    "padded": (tokenizer_of(range(40)), 64),
    "larger than the embedding": (tokenizer_of(range(40)), 33),
    "with gaps": (tokenizer_of([*range(10), *range(50, 80)]), 80),
    "with gaps, beyond the embedding": (tokenizer_of([*range(20), *range(50, 70)]), 60),
    "only an end": (tokenizer_of(range(41), eos_token="</s>"), 48),
    "padding that is the end": (tokenizer_of(range(41), eos_token="</s>", pad_token="</s>"), 48),
    "a beginning beyond the embedding": (
        tokenizer_of([90, *range(40)], bos_token="<s>"),
        40,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_writes_nothing_but_tokens_that_it_and_the_tokenizer_know(case):
    tokenizer, rows = CASES[case]
    model = model_of(rows)
    config = CalibrationConfig(source="generated", samples=8, languages=None)
    windows = build_calibration_set(config, tokenizer, model, LENGTH, seed=0)
    special = set(tokenizer.all_special_ids)
    known = {i for i in tokenizer.get_vocab().values() if i < rows} - special
    assert windows.input_ids.shape == (8, LENGTH)
    assert set(windows.input_ids.unique().tolist()) <= known
    assert all(text.strip() for text in tokenizer.batch_decode(windows.input_ids.reshape(-1, 1)))
    nll = window_nll(model, windows.input_ids)
    assert quality_report(windows, tokenizer, nll.mean().item()).token_coverage > 0
    assert int(windows.input_ids.max()) < vocabulary_size(tokenizer)


@pytest.mark.parametrize("case", CASES)
def test_the_start_has_a_probability_for_each_logit(case):
    tokenizer, rows = CASES[case]
    probabilities = start_distribution(model_of(rows), tokenizer)
    assert probabilities.shape == (rows,)
    assert probabilities.sum().item() == pytest.approx(1.0)
    ordinary = ordinary_token_ids(tokenizer, rows)
    assert (probabilities[ordinary] > 0).all()
    if case in ("without special tokens", "padded", "a beginning beyond the embedding"):
        assert torch.equal(
            probabilities[ordinary],
            torch.full_like(ordinary, 1, dtype=torch.float64) / len(ordinary),
        )


def test_ids_above_the_number_of_tokens_belong_to_a_vocabulary_with_gaps():
    tokenizer, _ = CASES["with gaps"]
    assert (len(tokenizer), vocabulary_size(tokenizer)) == (40, 80)
    assert ordinary_token_ids(tokenizer).tolist() == [*range(10), *range(50, 80)]


def test_a_tokenizer_of_another_model_altogether_is_refused():
    tokenizer = tokenizer_of(range(50, 90))
    message = "tokens that stand for text and the model a row for, of its 40; it has none"
    with pytest.raises(InputError, match=message):
        generate_windows(model_of(40), tokenizer, 2, LENGTH, seed=0)


def test_a_model_without_attention_writes_what_it_writes_in_one_piece():
    model, tokenizer = model_of(40, MambaConfig, state_size=8), tokenizer_of(range(40))
    windows = generate_windows(model, tokenizer, 2, LENGTH, seed=0, languages=None).input_ids
    with torch.no_grad():
        logits = model(input_ids=windows).logits
    # Greedy tokens are those of a model that has kept its past.
    for row, ids in zip(logits, windows, strict=True):
        assert row[:2].argmax(-1).tolist() == ids[1:3].tolist()
