"""Shapes of the two reference models and of their tokenizers.

Every linear input is a multiple of 256 and every output a multiple of 32, so that all export
formats, present and planned, can hold them.
"""

from typing import TYPE_CHECKING

from normtweak_core.lazy import lazy

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

tokenizers, transformers = lazy("tokenizers"), lazy("transformers")

REFERENCE_NAMES = ("llama", "neox")
CONTEXT = 512
# Small on purpose: what a model learns of the names of single files counts per token, and at three
# million parameters a larger vocabulary would only be a larger embedding.
VOCABULARY = 512
END_OF_TEXT = "<|endoftext|>"  # id 0: begins and ends a document


def model_config(name: str) -> "PretrainedConfig":
    """Return the transformers config of a reference model.

    Raises:
        ValueError: The name is neither ``llama`` nor ``neox``.
    """
    shared = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "hidden_size": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if name == "llama":
        return transformers.LlamaConfig(
            **shared,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=True,
            attention_bias=False,
            mlp_bias=False,
        )
    if name == "neox":
        return transformers.GPTNeoXConfig(
            **shared,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=8,
            use_parallel_residual=True,
            tie_word_embeddings=False,
            attention_bias=True,
        )
    raise ValueError(f"reference model must be one of {', '.join(REFERENCE_NAMES)}; got {name!r}")


def train_tokenizer(texts: list[str], name: str) -> "PreTrainedTokenizerFast":
    """Return a byte-level BPE tokenizer trained on the texts.

    The Llama tokenizer puts the end-of-text token before every document, as Llama's does with its
    own; the NeoX tokenizer adds nothing, as Pythia's.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if name == "llama":
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
