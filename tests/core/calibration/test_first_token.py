import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from normtweak_core.calibration.first_token import (
    document_prefix,
    find_first_tokens,
    ordinary_token_ids,
    start_distribution,
)
from normtweak_core.errors import InputError, NonFiniteError

PIECES = [
    "<s>",
    "▁the",
    "▁house",
    "▁of",
    "▁a",  # one letter
    "ing",  # inside a word
    "The",  # capitalised: starts a word without a marker
    "▁слово",
    "▁дом",
    "漢",  # one letter is a word here
    "字",
    "▁12",
    "▁!?",
    "▁שלום",
]


def tokenizer_of(pieces):
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=pieces[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<s>")


def distribution(**weights):
    masses = torch.full((len(PIECES),), 1e-6, dtype=torch.float64)
    for piece, weight in weights.items():
        masses[PIECES.index(piece)] = weight
    return masses / masses.sum()


def words(first):
    return {PIECES[i] for i in first.token_ids}


def texts_of(tokenizer, ids):
    return tokenizer.batch_decode([[i] for i in ids])


@pytest.fixture(scope="module")
def tokenizer():
    # Decoded text of a SentencePiece token carries no marker; here the marker must go by hand.
    made = tokenizer_of(PIECES)
    decode = made.batch_decode
    made.batch_decode = lambda rows: [text.replace("▁", " ") for text in decode(rows)]
    return made


def test_the_fewest_scripts_with_nine_tenths_of_the_probability_are_kept(tokenizer):
    weights = distribution(**{"▁the": 0.5, "▁слово": 0.3, "漢": 0.15, "▁שלום": 0.05})
    first = find_first_tokens(tokenizer, weights, "auto")
    assert first.scripts == ("latin", "cyrillic", "cjk")
    assert first.shares["cyrillic"] == pytest.approx(0.3, abs=1e-4)
    assert list(first.shares) == ["latin", "cyrillic", "cjk", "hebrew"]


def test_one_dominant_script_stands_alone(tokenizer):
    first = find_first_tokens(tokenizer, distribution(**{"▁слово": 0.95, "▁the": 0.05}), "auto")
    assert first.scripts == ("cyrillic",)
    assert words(first) == {"▁слово"}  # the likelier half of two


def test_the_share_of_a_script_counts_tokens_that_are_no_candidates(tokenizer):
    first = find_first_tokens(tokenizer, distribution(ing=0.95, **{"▁дом": 0.05}), "auto")
    assert first.scripts == ("latin",)
    assert "ing" not in words(first)


def test_candidates_are_the_likelier_half_of_the_words_of_a_script(tokenizer):
    weights = distribution(**{"▁the": 0.4, "The": 0.3, "▁of": 0.2, "▁house": 0.1, "▁a": 0.5})
    assert words(find_first_tokens(tokenizer, weights, ["latin"])) == {"▁the", "The"}


def test_scripts_can_be_named(tokenizer):
    first = find_first_tokens(tokenizer, distribution(**{"▁the": 1.0}), ["cjk", "hebrew"])
    assert first.scripts == ("cjk", "hebrew")
    assert words(first) == {"漢", "▁שלום"}


def test_no_languages_means_any_ordinary_token(tokenizer):
    first = find_first_tokens(tokenizer, distribution(), None)
    assert words(first) == set(PIECES) - {"<s>"}
    assert first.scripts == ()


def test_a_vocabulary_without_markers_is_one_of_whole_words():
    made = tokenizer_of(["<s>", "house", "river", "##ing", "12"])
    first = find_first_tokens(made, torch.full((5,), 0.2, dtype=torch.float64), ["latin"])
    assert first.token_ids.tolist() == [1]


def test_a_script_the_vocabulary_lacks_is_refused_by_name(tokenizer):
    message = "asks for thai, but the vocabulary has no word of that script; it has words of latin"
    with pytest.raises(InputError, match=message):
        find_first_tokens(tokenizer, distribution(**{"▁the": 1.0}), ["thai"])


def test_a_vocabulary_without_words_is_refused():
    made = tokenizer_of(["<s>", "1", "2", "3"])
    with pytest.raises(InputError, match=r"languages needs .*; the vocabulary has none: set it"):
        find_first_tokens(made, torch.full((4,), 0.25, dtype=torch.float64), "auto")


def test_the_prefix_is_what_the_tokenizer_puts_before_a_document(llama_tokenizer, neox_tokenizer):
    assert document_prefix(llama_tokenizer) == [0]
    assert document_prefix(neox_tokenizer) == []


def test_ordinary_ids_leave_out_special_ones_and_those_the_model_lacks(llama_tokenizer):
    size = len(llama_tokenizer)
    assert ordinary_token_ids(llama_tokenizer).tolist() == list(range(1, size))
    assert ordinary_token_ids(llama_tokenizer, 5).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_the_start_distribution_is_the_models_after_the_token_that_begins_documents(
    request, tiny_llama, name
):
    tokenizer = request.getfixturevalue(f"{name}_tokenizer")
    with torch.no_grad():
        logits = tiny_llama(torch.tensor([[0]])).logits[0, 0]
    probabilities = start_distribution(tiny_llama, tokenizer)
    expected = logits[1 : len(tokenizer)].double().softmax(-1)  # without the special token 0
    torch.testing.assert_close(probabilities[1 : len(tokenizer)], expected)
    assert probabilities[0] == 0
    assert not probabilities[len(tokenizer) :].any()


def test_nan_logits_are_an_error(tiny_llama, llama_tokenizer):
    weight = tiny_llama.model.norm.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(torch.nan)
        with pytest.raises(NonFiniteError, match="must give finite logits; they are NaN after the"):
            start_distribution(tiny_llama, llama_tokenizer)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_candidates_of_a_byte_level_vocabulary_are_whole_words(tiny_llama, llama_tokenizer):
    probabilities = start_distribution(tiny_llama, llama_tokenizer)
    first = find_first_tokens(llama_tokenizer, probabilities, "auto")
    assert first.scripts == ("latin",)
    for text in texts_of(llama_tokenizer, first.token_ids.tolist()):
        assert text.strip().isalpha()
        assert len(text.strip()) >= 2
        assert text.startswith(" ") or text.istitle()
