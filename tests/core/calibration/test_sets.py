import json

import pytest
import torch

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.generate import generate_windows
from normtweak_core.calibration.sets import CalibrationSet, build_calibration_set
from normtweak_core.calibration.text import cut_windows
from normtweak_core.errors import InputError


@pytest.fixture
def text_file(tmp_path, texts):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return path


def from_text(path, tokenizer, samples=8, seed=0):
    config = CalibrationConfig(source="text", path=str(path), samples=samples)
    return build_calibration_set(config, tokenizer, None, 24, seed)


def test_text_windows_are_taken_without_replacement_in_seeded_order(
    text_file, texts, llama_tokenizer
):
    windows = [tuple(row) for row in cut_windows(texts, llama_tokenizer, 24).tolist()]
    taken = from_text(text_file, llama_tokenizer, samples=len(windows)).input_ids.tolist()
    assert sorted(map(tuple, taken)) == sorted(windows)  # every window exactly once
    assert list(map(tuple, taken)) != windows
    few = from_text(text_file, llama_tokenizer).input_ids.tolist()
    assert few == taken[:8]
    assert few != from_text(text_file, llama_tokenizer, seed=1).input_ids.tolist()


def test_the_facts_of_a_text_name_its_content_and_not_its_place(text_file, llama_tokenizer):
    facts = from_text(text_file, llama_tokenizer).facts
    assert facts["documents"] == 200
    assert facts["windows_available"] > 100
    assert len(facts["text_sha256"]) == 64
    assert str(text_file) not in json.dumps(facts)


def test_a_text_with_too_few_windows_is_refused_with_the_count(text_file, texts, llama_tokenizer):
    available = len(cut_windows(texts, llama_tokenizer, 24))
    message = rf"asks for {available + 1} windows of 24 tokens; .* holds {available}: give more"
    with pytest.raises(InputError, match=message):
        from_text(text_file, llama_tokenizer, samples=available + 1)


def test_random_ids_are_uniform_over_ordinary_tokens(llama_tokenizer):
    config = CalibrationConfig(source="random", samples=64)
    made = build_calibration_set(config, llama_tokenizer, None, 1000, 0)
    counts = torch.bincount(made.input_ids.flatten(), minlength=len(llama_tokenizer))
    assert counts[0] == 0
    expected = 64_000 / (len(llama_tokenizer) - 1)
    chi_square = ((counts[1:] - expected) ** 2 / expected).sum()
    freedom = len(llama_tokenizer) - 2
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5


def test_random_ids_are_seeded_and_leave_the_global_generator_alone(llama_tokenizer):
    before = torch.random.get_rng_state()
    config = CalibrationConfig(source="random", samples=8)
    first, again, other = (
        build_calibration_set(config, llama_tokenizer, None, 16, seed) for seed in (1, 1, 2)
    )
    assert first.sha256 == again.sha256 != other.sha256
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_generated_set_is_what_the_generator_writes(tiny_llama, llama_tokenizer):
    config = CalibrationConfig(samples=8)
    made = build_calibration_set(config, llama_tokenizer, tiny_llama, 16, 3)
    assert torch.equal(
        made.input_ids, generate_windows(tiny_llama, llama_tokenizer, 8, 16, 3).input_ids
    )
    assert made.source == "generated"
    assert made.facts["scripts"] == ["latin"]
    assert made.facts["script_shares"] == {"latin": 1.0}
    assert made.facts["documents"] >= 8


def test_generating_without_a_model_is_refused(llama_tokenizer):
    message = r"calibration\.source generated needs the float model; found none"
    with pytest.raises(InputError, match=message):
        build_calibration_set(CalibrationConfig(), llama_tokenizer, None, 16, 0)


def test_the_hash_sees_every_id_and_the_shape():
    ids = torch.arange(12)
    made = CalibrationSet(ids.reshape(3, 4), "text")
    assert made.sha256 != CalibrationSet(ids.reshape(4, 3), "text").sha256
    changed = ids.clone()
    changed[11] = 10
    assert made.sha256 != CalibrationSet(changed.reshape(3, 4), "text").sha256
