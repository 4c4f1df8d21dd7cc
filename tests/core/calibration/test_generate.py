import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    OPTConfig,
)

from normtweak_core.calibration import generate
from normtweak_core.calibration.first_token import find_first_tokens, start_distribution
from normtweak_core.calibration.generate import generate_windows
from normtweak_core.errors import NonFiniteError
from normtweak_core.model.config import ModelConfig
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.source import resolve_source
from normtweak_core.model.tokenizer import load_tokenizer
from normtweak_core.randomness import generator

FAMILIES = {
    "neox": GPTNeoXConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "opt": OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    ),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=4),
    "gemma3": Gemma3TextConfig(  # a sliding window much shorter than what is written
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
    ),
}


def tiny(family, vocab_size):
    config = FAMILIES[family]
    config.vocab_size = vocab_size
    config.initializer_range = 0.2
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def slow_window(model, tokenizer, prefix, length, seed, index):
    """Write one window token by token, reading all of it again for each token."""
    draws = torch.rand(length, 2, generator=generator(seed, "generate", index), dtype=torch.float64)
    probabilities = start_distribution(model, tokenizer)
    first = find_first_tokens(tokenizer, probabilities, "auto").token_ids.tolist()
    greedy = (2, 3, 4)[index % 3]
    ids, document = [], []
    for position in range(length):
        sample, pick = draws[position].tolist()
        if len(document) > len(prefix):
            logits = model(torch.tensor([ids])).logits[0, -1].double()
            logits[len(tokenizer) :] = -torch.inf
            if len(document) < 32:
                logits[0] = -torch.inf  # the one special token of these tokenizers
            values, order = logits.sort(descending=True)
            cumulative = values[:50].softmax(-1).cumsum(-1)
            rank = 0
            while cumulative[rank] / cumulative[-1] <= sample:
                rank += 1
            token = order[0 if len(document) <= len(prefix) + greedy else rank].item()
            if token == 0:
                document = []
            else:
                document.append(token)
                ids.append(token)
                continue
        if len(document) < len(prefix):
            document.append(prefix[len(document)])
        else:
            document.append(first[int(pick * len(first))])
        ids.append(document[-1])
    return ids


def test_a_window_is_what_the_slow_writer_writes(tiny_llama, llama_tokenizer):
    written = generate_windows(tiny_llama, llama_tokenizer, 4, 48, seed=3)
    for index, row in enumerate(written.input_ids.tolist()):
        assert row == slow_window(tiny_llama, llama_tokenizer, [0], 48, 3, index)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_the_same_with_its_cache_as_without(family, neox_tokenizer):
    model = tiny(family, len(neox_tokenizer))
    written = generate_windows(model, neox_tokenizer, 2, 40, seed=4)
    for index, row in enumerate(written.input_ids.tolist()):
        assert row == slow_window(model, neox_tokenizer, [], 40, 4, index)


def test_the_batch_size_does_not_change_a_window(tiny_llama, llama_tokenizer):
    one = generate_windows(tiny_llama, llama_tokenizer, 5, 40, seed=5, batch_size=1).input_ids
    for batch_size in (2, 5, None):
        other = generate_windows(tiny_llama, llama_tokenizer, 5, 40, 5, batch_size=batch_size)
        assert torch.equal(other.input_ids, one)


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_windows_of_a_trained_model_are_the_same_in_every_batch(name):
    folder = resolve_source(ModelConfig(source=f"reference:{name}")).path
    model, tokenizer = load_causal_lm(folder, torch.float32, "cpu"), load_tokenizer(folder)
    together = generate_windows(model, tokenizer, 5, 32, seed=1).input_ids
    for batch_size in (1, 3):
        other = generate_windows(model, tokenizer, 5, 32, seed=1, batch_size=batch_size)
        assert torch.equal(other.input_ids, together)


def test_the_same_seed_writes_the_same_and_another_seed_writes_something_else(
    tiny_llama, llama_tokenizer
):
    before = torch.random.get_rng_state()
    first, again, other = (
        generate_windows(tiny_llama, llama_tokenizer, 4, 30, seed).input_ids for seed in (6, 6, 7)
    )
    assert torch.equal(first, again)
    assert len({tuple(row) for row in (*first.tolist(), *other.tolist())}) == 8
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture
def eager_to_end(tiny_llama):
    """Return a model that would rather end the document than write anything else."""

    def push(_module, _inputs, logits):
        logits[..., 0] += 1e4
        return logits

    hook = tiny_llama.lm_head.register_forward_hook(push)
    yield tiny_llama
    hook.remove()


def test_the_end_of_a_document_begins_the_next_and_never_pads(eager_to_end, llama_tokenizer):
    written = generate_windows(eager_to_end, llama_tokenizer, 4, 100, seed=8)
    period = generate.MIN_DOCUMENT
    probabilities = start_distribution(eager_to_end, llama_tokenizer)
    first = set(find_first_tokens(llama_tokenizer, probabilities, "auto").token_ids.tolist())
    for row in written.input_ids.tolist():
        assert [i for i, token in enumerate(row) if token == 0] == list(range(0, 100, period))
        assert {row[i + 1] for i in range(0, 100, period)} <= first
    assert written.documents == 4 * 4


def test_without_a_prefix_the_next_document_begins_with_its_first_token(
    eager_to_end, neox_tokenizer
):
    written = generate_windows(eager_to_end, neox_tokenizer, 2, 70, seed=8)
    assert 0 not in written.input_ids
    assert written.documents == 2 * 3
    probabilities = start_distribution(eager_to_end, neox_tokenizer)
    first = find_first_tokens(neox_tokenizer, probabilities, "auto").token_ids
    starts = written.input_ids[:, :: generate.MIN_DOCUMENT]
    assert torch.isin(starts, first).all()


def test_ids_that_are_no_text_are_never_written(tiny_llama, llama_tokenizer):
    def push(_module, _inputs, logits):
        logits[..., len(llama_tokenizer) :] += 1e4  # rows that only pad the embedding
        return logits

    hook = tiny_llama.lm_head.register_forward_hook(push)
    try:
        written = generate_windows(tiny_llama, llama_tokenizer, 2, 40, seed=9)
    finally:
        hook.remove()
    assert int(written.input_ids.max()) < len(llama_tokenizer)


def test_progress_counts_every_token_once(tiny_llama, llama_tokenizer):
    seen = []
    generate_windows(
        tiny_llama, llama_tokenizer, 5, 12, 0, batch_size=2, progress=lambda *at: seen.append(at)
    )
    done = [tokens for tokens, _ in seen]
    assert done == sorted(done)
    assert done[0] == 2
    assert seen[-1] == (60, 60)
    assert {total for _, total in seen} == {60}


@pytest.mark.parametrize("length", [12, 2 * generate.CHECK_EVERY])
def test_logits_that_become_nan_are_an_error(tiny_llama, llama_tokenizer, length):
    def spoil(_module, inputs, logits):
        return logits * torch.nan if inputs[0].shape[0] == 3 else logits

    hook = tiny_llama.lm_head.register_forward_hook(spoil)
    try:
        with pytest.raises(NonFiniteError, match="became NaN while it wrote calibration text"):
            generate_windows(tiny_llama, llama_tokenizer, 3, length, seed=0)
    finally:
        hook.remove()


def test_the_ids_can_be_trained_on(tiny_llama, llama_tokenizer):
    ids = generate_windows(tiny_llama, llama_tokenizer, 2, 12, seed=0).input_ids
    embedding = torch.nn.Embedding(len(llama_tokenizer), 4)
    embedding(ids).sum().backward()  # fails on tensors made in inference mode
    assert embedding.weight.grad.sum() == ids.numel() * 4


def test_a_story_model_writes_stories(story_model):
    model, tokenizer = story_model
    written = generate_windows(model, tokenizer, 8, 96, seed=0)
    assert written.first_tokens.scripts == ("latin",)
    text = tokenizer.batch_decode(written.input_ids)
    assert all(window.startswith("<s>") for window in text)
    assert sum(word in " ".join(text) for word in ("the", "was", "she", "to", "and")) >= 4
