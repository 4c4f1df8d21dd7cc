"""The tokens a generated document may begin with: words of the vocabulary's dominant languages.

Source: Norm Tweaking (arXiv 2309.02784): "we restrict the first random token to be selected only
from the language categories in the list of top languages that have the highest proportion". The
paper does not say how tokens map to languages or how proportions are found. Here:

* the language of a token is the Unicode script of its letters;
* the proportion of a script is the probability that the model itself, at the start of a document,
  gives to all tokens of that script: the training corpus is not at hand, the model's idea of it is;
* the top languages are the fewest scripts that together hold TOP_SHARE of that probability;
* a candidate starts a word, is nothing but letters, at least two of them (one where a script has
  no spaces), and belongs to the likelier half of such tokens. Candidates are drawn uniformly, as
  LLM-QAT draws its first token: the model's own distribution would begin most windows alike.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.calibration.scripts import UNSPACED, is_word, script_of_token
from normtweak_core.errors import InputError, NonFiniteError

TOP_SHARE = 0.9  # a tail of scripts that share a tenth is the corpus' noise, not its languages
WORD_MARKERS = ("Ġ", "▁", " ")  # byte-level BPE, SentencePiece, plain
CONTINUATION = "##"  # WordPiece


@dataclass(frozen=True)
class FirstTokens:
    """Candidates for the first token of a document.

    Attributes:
        token_ids: Ids in increasing order.
        scripts: The scripts they come from, most probable first; empty: any token.
        shares: Probability of each script at the start of a document.
    """

    token_ids: Int64[Tensor, " candidates"]
    scripts: tuple[str, ...]
    shares: dict[str, float]


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that stand for no text: begin, end, padding, chat markers."""
    added = tokenizer.added_tokens_decoder
    return set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}


def ordinary_token_ids(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None
) -> Int64[Tensor, " ordinary"]:
    """Return the ids that stand for text and that the model, where its size is given, knows.

    Raises:
        InputError: There is none.
    """
    # A vocabulary may have gaps, and then more ids than tokens.
    ids = set(tokenizer.get_vocab().values()) - special_token_ids(tokenizer)
    known = sorted(i for i in ids if vocab_size is None or i < vocab_size)
    if not known:
        rows = "" if vocab_size is None else f" and the model a row for, of its {vocab_size}"
        raise InputError(
            f"a tokenizer must have tokens that stand for text{rows}; it has none. Give the "
            "tokenizer of this model."
        )
    return torch.tensor(known, dtype=torch.int64)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number above every id of the tokenizer; more than its tokens where ids lack."""
    return max(tokenizer.get_vocab().values()) + 1


def document_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer puts before a document by default."""
    special = special_token_ids(tokenizer)
    prefix = []
    for token in tokenizer("a").input_ids:
        if token not in special:
            break
        prefix.append(token)
    return prefix


@torch.no_grad()
def start_distribution(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Float64[Tensor, " vocab"]:
    """Return the model's probabilities of ordinary tokens at the start of a document.

    The context is what the tokenizer puts before a document; else the token that begins one, else
    the one that ends one. Where the tokenizer has none of these that the model knows, all tokens
    are equally likely. There is a probability for every logit, whatever the tokenizer's size.
    Special tokens have probability zero: a model can be sure that one ended document ends twice.

    Raises:
        NonFiniteError: The model's logits are NaN.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    context = document_prefix(tokenizer) or [i for i in marks if i is not None and i < rows][:1]
    ordinary = ordinary_token_ids(tokenizer, rows)
    ids = torch.tensor([context or ordinary[:1].tolist()], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, -1].double().cpu()
    if logits.isnan().any():
        raise NonFiniteError(
            "the float model must give finite logits; they are NaN after the first token: check "
            "its weights and model.dtype"
        )
    ordinary = ordinary[ordinary < len(logits)]
    likely = logits[ordinary] if context else torch.zeros(len(ordinary), dtype=logits.dtype)
    return torch.zeros_like(logits).index_copy(0, ordinary, likely.softmax(-1))


def find_first_tokens(
    tokenizer: PreTrainedTokenizerBase,
    probabilities: Float64[Tensor, " vocab"],
    languages: str | list[str] | None,
) -> FirstTokens:
    """Return the tokens that a generated document may begin with.

    Args:
        tokenizer: Its vocabulary is what is looked through.
        probabilities: The model's distribution at the start of a document.
        languages: ``auto``: the dominant scripts; a list: these scripts; None: any ordinary token.

    Raises:
        InputError: The vocabulary has no candidate in a script that is asked for, or no letters.
    """
    ids = ordinary_token_ids(tokenizer, len(probabilities))
    if languages is None:
        return FirstTokens(ids, (), {})
    texts = tokenizer.batch_decode([[i] for i in ids.tolist()])
    script_of = {i: script_of_token(text) for i, text in zip(ids.tolist(), texts, strict=True)}
    shares = _script_shares(script_of, probabilities)
    candidates = _word_starts(tokenizer, dict(zip(ids.tolist(), texts, strict=True)), script_of)
    if not candidates:
        raise InputError(
            "needs tokens that are words where it is auto or a list",
            key="calibration.languages",
            found="the vocabulary has none",
            remedy="set it to null",
        )
    found = [script for script in shares if script in {script_of[i] for i in candidates}]
    if languages == "auto":
        scripts = _top_scripts({script: shares[script] for script in found})
    else:
        scripts = tuple(languages)
    chosen: list[int] = []
    for script in scripts:
        words = [i for i in candidates if script_of[i] == script]
        if not words:
            raise InputError(
                f"asks for {script}, but the vocabulary has no word of that script",
                key="calibration.languages",
                found=f"it has words of {', '.join(found)}",
                remedy="name one of these",
            )
        chosen += sorted(words, key=lambda i: -probabilities[i].item())[: (len(words) + 1) // 2]
    return FirstTokens(torch.tensor(sorted(chosen), dtype=torch.int64), scripts, shares)


def _script_shares(
    script_of: dict[int, str | None], probabilities: Float64[Tensor, " vocab"]
) -> dict[str, float]:
    mass: dict[str, float] = {}
    for i, probability in enumerate(probabilities.tolist()):
        script = script_of.get(i)
        if script is not None:
            mass[script] = mass.get(script, 0.0) + probability
    total = sum(mass.values())
    ranked = sorted(mass.items(), key=lambda item: (-item[1], item[0]))
    return {script: share / total for script, share in ranked}


def _top_scripts(shares: dict[str, float]) -> tuple[str, ...]:
    kept: list[str] = []
    total = sum(shares.values())
    for script in shares:
        kept.append(script)
        if sum(shares[k] for k in kept) >= TOP_SHARE * total:
            break
    return tuple(kept)


def _word_starts(
    tokenizer: PreTrainedTokenizerBase, texts: dict[int, str], script_of: dict[int, str | None]
) -> list[int]:
    """Return the ids of tokens that begin a word and are nothing but letters of one script."""
    ids = list(texts)
    pieces = {i: p or "" for i, p in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)}
    # A vocabulary of whole words carries no marker anywhere; there every token starts a word.
    marked = any(piece.startswith(WORD_MARKERS) for piece in pieces.values())
    starts = []
    for i, text in texts.items():
        word, script, piece = text.strip(), script_of[i], pieces[i]
        if script is None or not is_word(word) or len(word) < (1 if script in UNSPACED else 2):
            continue
        starts_word = piece.startswith(WORD_MARKERS) or script in UNSPACED or word.istitle()
        if starts_word or not (marked or piece.startswith(CONTINUATION)):
            starts.append(i)
    return starts
