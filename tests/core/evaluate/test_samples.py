"""What two models write, against transformers' own greedy generation."""

import pytest
import torch
from transformers import AutoTokenizer

from normtweak_core.evaluate.samples import MOST_TOKENS, side_by_side, written
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.model.source import reference_folder
from tests.core.evaluate.test_divergence import tiny_llama


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(reference_folder("llama"))


def both_written(quantized, float_model, tokenizer, windows):
    texts = (written(model, tokenizer, windows) for model in (quantized, float_model))
    return side_by_side(*texts, tokenizer, windows)


def test_samples_are_what_each_model_generates_greedily(tokenizer):
    model = load_causal_lm(reference_folder("llama"), torch.float32, "cpu")
    text = "def area(width, height):\n    return width * height\n\n" * 20
    ids = torch.tensor(tokenizer(text)["input_ids"])
    windows = ids[: 4 * 64].view(4, 64)
    other = tiny_llama(1, len(tokenizer))
    samples = both_written(other, model, tokenizer, windows)
    assert len(samples) == 3
    for sample, window in zip(samples, (0, 1, 2), strict=True):
        prompt = windows[window : window + 1, :MOST_TOKENS]
        assert sample.prompt == tokenizer.decode(prompt[0], skip_special_tokens=True)
        for writer, text in ((model, sample.float_text), (other, sample.quantized_text)):
            expected = writer.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=MOST_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )[0, MOST_TOKENS:].tolist()
            end = tokenizer.eos_token_id
            expected = expected[: expected.index(end)] if end in expected else expected
            assert text == tokenizer.decode(expected, skip_special_tokens=True)
    assert samples[0].float_text != samples[0].quantized_text


@pytest.mark.parametrize(("count", "length", "samples"), [(1, 8, 1), (2, 9, 2), (40, 12, 3)])
def test_few_and_short_windows_have_samples_as_well(tokenizer, count, length, samples):
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(3, 50, (count, length), generator=generator)
    found = both_written(tiny_llama(0), tiny_llama(0), tokenizer, windows)
    assert len(found) == samples
    assert all(one.float_text == one.quantized_text for one in found)
