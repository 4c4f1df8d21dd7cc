import pytest
import torch

from normtweak_core.calibration import quality
from normtweak_core.calibration.quality import window_nll
from normtweak_core.calibration.text import cut_windows, read_documents
from normtweak_core.errors import NonFiniteError


@torch.no_grad()
def slow_nll(model, row):
    """Return the mean over predicted tokens, each read from its own forward pass, in float64."""
    losses = [
        -model(row[None, :i]).logits[0, -1].double().log_softmax(-1)[row[i]]
        for i in range(1, len(row))
    ]
    return torch.stack(losses).mean()


@pytest.fixture
def ids(seeded):
    return torch.randint(1, 300, (5, 12), generator=seeded(0))


def test_the_first_token_is_context_and_every_other_is_predicted(tiny_llama, ids):
    expected = torch.stack([slow_nll(tiny_llama, row) for row in ids])
    torch.testing.assert_close(window_nll(tiny_llama, ids), expected, rtol=1e-5, atol=1e-5)


def test_the_batch_size_does_not_change_the_likelihood(tiny_llama, ids, monkeypatch):
    together = window_nll(tiny_llama, ids)
    monkeypatch.setattr(quality, "LOGIT_BYTES", 1)
    torch.testing.assert_close(window_nll(tiny_llama, ids), together, rtol=1e-5, atol=1e-5)


def test_a_likelihood_that_is_not_finite_names_its_window(tiny_llama, ids):
    def spoil(_module, _inputs, logits):
        logits[3, 4] = torch.nan
        return logits

    hook = tiny_llama.lm_head.register_forward_hook(spoil)
    try:
        with pytest.raises(NonFiniteError, match="finite likelihood; calibration window 3 has nan"):
            window_nll(tiny_llama, ids)
    finally:
        hook.remove()


def test_a_story_model_reads_stories_as_its_provenance_says(story_model, story_text):
    model, tokenizer = story_model
    every = read_documents(story_text.with_name("stories.jsonl"))
    windows = cut_windows(every[900:], tokenizer, 512)
    # PROVENANCE.md: 1.485 nats per token, stories 900-999 of the uncleaned sample, 512 a window
    assert window_nll(model, windows).mean().item() == pytest.approx(1.485, abs=0.001)
