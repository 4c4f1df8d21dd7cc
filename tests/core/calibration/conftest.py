"""Tiny random models, a small trained tokenizer, and the real story model where it is present."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from normtweak_core.reference.architectures import train_tokenizer

SHARED = Path(__file__).resolve().parents[3] / "../shared"
WORDS = (
    "once upon a time there was a small house near the river where an old woman kept three cats "
    "and every morning she walked along the water to look for fish while the cats slept in the "
    "warm kitchen because winter had come early that year and nobody wanted to leave the fire"
).split()


def sentence(number: int) -> str:
    """Return one of many different sentences, without randomness."""
    picked = [WORDS[(number * 7 + i * (number % 5 + 1)) % len(WORDS)] for i in range(20)]
    return f"{' '.join(picked).capitalize()} {number}."


@pytest.fixture(scope="session")
def texts():
    return [sentence(i) for i in range(200)]


@pytest.fixture(scope="session")
def llama_tokenizer(texts):
    """Return a tokenizer that begins every document with its one special token."""
    return train_tokenizer(texts, "llama")


@pytest.fixture(scope="session")
def neox_tokenizer(texts):
    """Return a tokenizer that adds nothing to a document."""
    return train_tokenizer(texts, "neox")


@pytest.fixture(scope="session")
def tiny_llama(llama_tokenizer):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(llama_tokenizer) + 3,  # padded, as many real embeddings are
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                initializer_range=0.3,  # far from uniform, so that ranks are far apart
                bos_token_id=0,
                eos_token_id=0,
            )
        ).eval()


@pytest.fixture(scope="session")
def story_model():
    folder = SHARED / "models/stories260K"
    if not folder.is_dir():
        pytest.skip("the stories260K model is not present beside the repository")
    return (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )


@pytest.fixture(scope="session")
def story_text():
    path = SHARED / "data/tinystories-1000/stories.clean.jsonl"
    if not path.is_file():
        pytest.skip("the TinyStories sample is not present beside the repository")
    return path
