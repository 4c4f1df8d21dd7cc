"""Which files of a model folder make its tokenizer: all that AutoTokenizer reads; no torch.

Known here by name, since a key is computed before transformers is imported; that the names are all
those that it reads, its own classes are asked in a test, and the class of each tokenizer when it is
opened (`load_tokenizer`).
"""

from pathlib import Path

CHAT_TEMPLATES = "additional_chat_templates"
# With * and within the folder alone, as fnmatch and glob read them.
TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer.*.json",  # for a version of transformers; fast_tokenizer_files names them
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    f"{CHAT_TEMPLATES}/*.jinja",
    "*.model",  # of sentencepiece, whatever its name
    "tokenizer.model*",  # Mistral counts versions behind it
    "*.tiktoken",
    "tekken.json",
    # Vocabularies of single classes.
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "byte_maps.json",
    "emoji.json",
    "entity_vocab.json",
    "normalizer.json",
    "prophetnet.tokenizer",
    "vocab-src.json",
    "vocab-tgt.json",
    "word_pronunciation.json",
    "word_shape.json",
)


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder that make its tokenizer, sorted by relative path."""
    found = {path for pattern in TOKENIZER_PATTERNS for path in folder.glob(pattern)}
    files = (path for path in found if path.is_file())
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())
