"""Perplexity and divergence against a slow per-token loop, and against what must not matter."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from normtweak_core.errors import InputError, NonFiniteError
from normtweak_core.evaluate.divergence import compare, perplexity
from normtweak_core.evaluate.scores import Comparison, FloatResult

SHARED = Path(__file__).resolve().parents[3] / "../shared"
VOCAB = 50


def tiny_llama(seed: int, vocab: int = VOCAB) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def some_windows(count: int = 5, length: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, VOCAB, (count, length), generator=generator)


def slow_windows(quantized, reference, windows):
    """Per window: list of (nll quantized, nll float, kl, same first, reverse kl), in float64."""
    rows = []
    for window in windows:
        q = quantized(input_ids=window[None]).logits[0].double()
        f = reference(input_ids=window[None]).logits[0].double()
        tokens = []
        for position in range(1, len(window)):
            before, target = position - 1, window[position]
            log_q = q[before] - q[before].exp().sum().log()
            log_f = f[before] - f[before].exp().sum().log()
            kl = sum(
                math.exp(log_f[v]) * (log_f[v].item() - log_q[v].item()) for v in range(len(log_f))
            )
            reverse = sum(
                math.exp(log_q[v]) * (log_q[v].item() - log_f[v].item()) for v in range(len(log_q))
            )
            same = float(q[before].argmax() == f[before].argmax())
            tokens.append((-log_q[target].item(), -log_f[target].item(), kl, same, reverse))
        rows.append(tokens)
    return torch.tensor(rows, dtype=torch.float64)  # (windows, tokens, 5)


@torch.no_grad()
def test_all_numbers_agree_with_a_loop_over_tokens():
    quantized, reference, windows = tiny_llama(1), tiny_llama(2), some_windows()
    expected = slow_windows(quantized, reference, windows)

    result = compare(quantized, reference, windows)

    means = expected.mean(1)  # (windows, 5)
    errors = means.std(0) / math.sqrt(len(windows))
    nll_q, nll_f, kl, same, reverse = means.mean(0).tolist()
    metrics = result.metrics()
    assert metrics["tokens"] == 5 * 11
    assert metrics["nll/quantized"] == pytest.approx(nll_q, abs=1e-6)
    assert metrics["nll/float"] == pytest.approx(nll_f, abs=1e-6)
    assert metrics["perplexity/quantized"] == pytest.approx(math.exp(nll_q), rel=1e-6)
    assert metrics["perplexity/float"] == pytest.approx(math.exp(nll_f), rel=1e-6)
    assert metrics["kl/mean"] == pytest.approx(kl, abs=1e-6)
    assert metrics["kl/stderr"] == pytest.approx(errors[2].item(), rel=1e-5)
    assert metrics["kl_reverse/mean"] == pytest.approx(reverse, abs=1e-6)
    assert metrics["kl_reverse/stderr"] == pytest.approx(errors[4].item(), rel=1e-5)
    assert metrics["kl_reverse/mean"] != pytest.approx(kl, rel=0.01)
    assert metrics["top1_agreement"] == pytest.approx(same)
    assert metrics["top1_agreement_stderr"] == pytest.approx(errors[3].item())
    assert metrics["perplexity/float_stderr"] == pytest.approx(
        math.exp(nll_f) * errors[1].item(), rel=1e-5
    )
    paired = (means[:, 0] - means[:, 1]).std().item() / math.sqrt(len(windows))
    assert metrics["nll_difference/mean"] == pytest.approx(nll_q - nll_f, abs=1e-6)
    assert metrics["nll_difference/stderr"] == pytest.approx(paired, rel=1e-5)
    assert metrics["perplexity/ratio"] == pytest.approx(math.exp(nll_q - nll_f), rel=1e-6)


def test_a_model_does_not_diverge_from_itself():
    model = tiny_llama(1)
    result = compare(model, model, some_windows())
    assert result.window_kl == result.window_kl_reverse == [0.0] * 5
    assert result.window_agreement == [1.0] * 5
    assert result.nll_difference.mean == 0 == result.nll_difference.stderr


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batch_size_does_not_matter(batch_size):
    quantized, reference, windows = tiny_llama(1), tiny_llama(2), some_windows()
    expected = compare(quantized, reference, windows)
    result = compare(quantized, reference, windows, batch_size=batch_size)
    for name, value in result.metrics().items():
        assert value == pytest.approx(expected.metrics()[name], rel=1e-5), name


def test_the_chunk_of_tokens_does_not_matter(monkeypatch):
    quantized, reference, windows = tiny_llama(1), tiny_llama(2), some_windows()
    expected = compare(quantized, reference, windows)
    monkeypatch.setattr("normtweak_core.evaluate.predictions.LOGITS_PER_PIECE", 3 * VOCAB)
    assert compare(quantized, reference, windows) == expected


def test_a_function_serves_as_a_model():
    model, windows = tiny_llama(1), some_windows()
    wrapped = perplexity(lambda ids: model(input_ids=ids).logits, windows)
    assert wrapped == perplexity(model, windows)


def test_perplexity_alone_equals_the_float_side_of_a_comparison():
    model, windows = tiny_llama(2), some_windows()
    assert compare(tiny_llama(1), model, windows).float_result == perplexity(model, windows)


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity():
    result = perplexity(lambda ids: torch.zeros(*ids.shape, VOCAB), some_windows())
    assert result.perplexity.mean == pytest.approx(VOCAB, rel=1e-6)
    assert result.perplexity.stderr == pytest.approx(0, abs=1e-6)


def test_a_result_survives_json():
    result = compare(tiny_llama(1), tiny_llama(2), some_windows())
    assert Comparison.model_validate_json(result.model_dump_json()) == result
    part = result.float_result
    assert FloatResult.model_validate(json.loads(part.model_dump_json())) == part


def test_one_window_has_no_standard_error():
    metrics = compare(tiny_llama(1), tiny_llama(2), some_windows(1)).metrics()
    assert not [name for name in metrics if "stderr" in name]
    assert Comparison.model_fields.keys() >= {"window_kl"}


def test_progress_counts_windows():
    seen = []
    perplexity(
        tiny_llama(1),
        some_windows(),
        progress=lambda done, total: seen.append((done, total)),
        batch_size=2,
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("broken", ["quantized", "float"])
def test_non_finite_logits_are_refused_by_name(bad, broken):
    def model(ids):
        logits = torch.zeros(*ids.shape, VOCAB)
        logits[0, 0, 3] = bad
        return logits

    pair = (model, tiny_llama(1)) if broken == "quantized" else (tiny_llama(1), model)
    with pytest.raises(NonFiniteError, match=rf"infinity in the {broken} model in windows 0 to 1"):
        compare(*pair, some_windows(), batch_size=2)


@pytest.mark.parametrize(
    ("dtype", "told"),
    [
        (torch.float16, "in float16, .*: set export.dtype to bfloat16 or float32 .*--dtype"),
        (torch.bfloat16, "in bfloat16, .*: set export.dtype to float32 .*--dtype"),
        (torch.float32, "Check its weights"),
    ],
)
def test_a_text_beyond_the_float_type_is_told_with_what_holds_it(dtype, told):
    def model(ids):
        return torch.full((*ids.shape, VOCAB), float("nan"), dtype=dtype)

    with pytest.raises(NonFiniteError, match=told):
        perplexity(model, some_windows())
    float_model = told.replace("export.dtype", "model.dtype")
    with pytest.raises(NonFiniteError, match=float_model):
        compare(tiny_llama(1), model, some_windows())


def test_models_of_different_vocabularies_are_refused():
    with pytest.raises(InputError, match="quantized model has 50 logits, the float model 60"):
        compare(tiny_llama(1), tiny_llama(1, vocab=60), some_windows())


@pytest.mark.parametrize("shape", [(0, 8), (3, 1)])
def test_too_few_tokens_are_refused(shape):
    windows = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(InputError, match=f"found {shape[0]} windows of {shape[1]}"):
        perplexity(tiny_llama(1), windows)


def test_training_mode_is_refused():
    with pytest.raises(InputError, match="training mode"):
        perplexity(tiny_llama(1).train(), some_windows())


def test_the_published_loss_of_stories260k_is_reproduced():
    model_folder = SHARED / "models/stories260K"
    stories = SHARED / "data/tinystories-1000/stories.jsonl"
    if not (model_folder.is_dir() and stories.is_file()):
        pytest.skip("stories260K and the TinyStories sample are not beside this checkout")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lines = stories.read_text(encoding="utf-8").splitlines()[900:1000]
    ids = [i for line in lines for i in tokenizer(json.loads(line)["text"])["input_ids"]]
    windows = torch.tensor(ids[: len(ids) // 512 * 512]).view(-1, 512)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()

    result = perplexity(model, windows)

    assert result.nll.mean == pytest.approx(1.485, abs=1e-3)  # published with three digits
    assert result.perplexity.mean == pytest.approx(4.42, abs=5e-3)
