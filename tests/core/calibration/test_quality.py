import math

import pytest
import torch
from pydantic import ValidationError

from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.calibration.generate import generate_windows
from normtweak_core.calibration.quality import QualityReport, quality_report, window_nll
from normtweak_core.calibration.sets import CalibrationSet, build_calibration_set
from normtweak_core.calibration.text import cut_windows, read_documents
from normtweak_core.errors import InputError


@pytest.fixture(scope="module")
def prose(texts, llama_tokenizer):
    return cut_windows(texts, llama_tokenizer, 48)[:32]


def report(ids, tokenizer, nll=3.0, source="text", **facts):
    return quality_report(CalibrationSet(ids, source, facts), tokenizer, nll)


def test_varied_text_is_ok_and_counted(prose, llama_tokenizer):
    made = report(prose, llama_tokenizer)
    assert (made.verdict, made.reasons) == ("ok", [])
    distinct = {token for row in prose.tolist() for token in row}
    # Token 0 begins documents: it occurs, but it is not among the tokens that could be covered.
    assert made.token_coverage == len(distinct - {0}) / (len(llama_tokenizer) - 1)
    assert made.scripts == {"latin": 1.0}
    assert (made.samples, made.length, made.duplicate_windows) == (32, 48, 0)
    made.require_usable()


def test_one_token_over_and_over_is_refused(llama_tokenizer):
    made = report(torch.full((16, 64), 400), llama_tokenizer)
    assert made.verdict == "refused"
    assert made.repetitive_windows == 1.0
    assert made.distinct_in_window[4] == 1 / 61
    with pytest.raises(InputError, match=r"usable text; within a window only 1\.6% of the 4-grams"):
        made.require_usable()


def test_one_window_many_times_is_refused(prose, llama_tokenizer):
    made = report(prose[:1].expand(32, -1).contiguous(), llama_tokenizer)
    assert made.verdict == "refused"
    assert made.duplicate_windows == 31
    assert "97% of the windows are copies of an earlier one" in made.reasons


def test_loops_in_most_windows_are_refused_and_in_some_are_a_warning(prose, llama_tokenizer):
    loop = torch.tensor([301, 302, 303, 304] * 12)
    some, most = prose.clone(), prose.clone()
    some[:4] = loop + torch.arange(4)[:, None]
    most[:20] = loop + torch.arange(20)[:, None]
    warned, refused = report(some, llama_tokenizer), report(most, llama_tokenizer)
    assert (warned.verdict, refused.verdict) == ("warning", "refused")
    assert warned.reasons == ["12% of the windows are mostly one repeated phrase"]
    assert "62% of the windows are mostly one repeated phrase" in refused.reasons


def test_a_few_copies_are_a_warning(prose, llama_tokenizer):
    copied = prose.clone()
    copied[3] = copied[4]
    made = report(copied, llama_tokenizer)
    assert made.verdict == "warning"
    assert made.reasons == ["1 windows are copies of an earlier one"]


@pytest.mark.parametrize(
    ("source", "in_chance", "verdict", "reason"),
    [
        ("text", 1.2, "warning", "predicts it worse than chance"),
        ("text", 1.6, "refused", "far worse than chance"),
        ("random", 1.6, "warning", "predicts it worse than chance"),
        ("text", 0.01, "warning", "has it by heart"),
        ("text", 0.9, "ok", None),
    ],
)
def test_the_likelihood_is_judged_against_chance(
    prose, llama_tokenizer, source, in_chance, verdict, reason
):
    nll = in_chance * math.log(len(llama_tokenizer) - 1)
    made = report(prose, llama_tokenizer, nll, source)
    assert made.verdict == verdict
    assert [reason in text for text in made.reasons] == ([] if reason is None else [True])


def test_text_that_left_the_script_it_was_begun_in_is_a_warning(prose, llama_tokenizer):
    made = report(prose, llama_tokenizer, source="generated", scripts=["cyrillic"])
    assert made.verdict == "warning"
    assert made.reasons == ["text was begun in cyrillic, but only 0% of its letters are"]


def test_few_tokens_of_a_large_vocabulary_are_a_warning(llama_tokenizer, seeded):
    ids = torch.randint(300, 308, (32, 64), generator=seeded(0))
    assert "only 8 different tokens of" in " ".join(report(ids, llama_tokenizer).reasons)


def test_a_report_survives_json(prose, llama_tokenizer):
    made = report(prose, llama_tokenizer)
    assert QualityReport.model_validate_json(made.model_dump_json()) == made


def test_a_likelihood_that_is_not_finite_is_no_report(prose, llama_tokenizer):
    with pytest.raises(ValidationError, match="finite number"):
        report(prose, llama_tokenizer, math.nan)


def test_random_ids_of_a_real_model_are_only_warned_about(story_model):
    model, tokenizer = story_model
    config = CalibrationConfig(source="random", samples=8)
    made = build_calibration_set(config, tokenizer, model, 128, 0)
    judged = quality_report(made, tokenizer, window_nll(model, made.input_ids).mean().item())
    assert judged.verdict == "warning"
    assert judged.mean_nll > 1.5 * math.log(512)


def test_what_a_story_model_writes_is_as_good_as_stories(story_model, story_text):
    model, tokenizer = story_model
    written = generate_windows(model, tokenizer, 8, 128, 0).input_ids
    stories = cut_windows(read_documents(story_text)[:20], tokenizer, 128)[:8]
    nll, story_nll = (
        window_nll(model, written).mean().item(),
        window_nll(model, stories).mean().item(),
    )
    ours, real = (report(x, tokenizer, n) for x, n in ((written, nll), (stories, story_nll)))
    assert ours.verdict == real.verdict == "ok"
    assert ours.scripts["latin"] == 1.0
    assert ours.mean_nll < 2.2
    assert ours.distinct_in_window[4] > 0.9 * real.distinct_in_window[4]
    constant = torch.full_like(written, 400)
    assert (
        report(constant, tokenizer, window_nll(model, constant).mean().item()).verdict == "refused"
    )
