"""Which files of a model folder make its tokenizer: all that AutoTokenizer reads; no torch.

Known here by name, since a key is computed before transformers is imported; that the names are all
those that it reads, its own classes are asked in a test, and the class of each tokenizer when it is
opened (`load_tokenizer`).
"""

import codecs
from pathlib import Path

from normtweak_core.errors import InputError
from normtweak_core.given_files import read_json_object
from normtweak_core.model.architecture import read_config
from normtweak_core.model.foreign_code import refuse_foreign_tokenizer

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

# What AutoProcessor reads beside the tokenizer, of a model that reads images.
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def processor_files(folder: Path) -> list[Path]:
    """Return the files of a folder that say how images become inputs, sorted; most have none."""
    return [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a folder that make its tokenizer, sorted by relative path."""
    found = {path for pattern in TOKENIZER_PATTERNS for path in folder.glob(pattern)}
    files = (path for path in found if path.is_file())
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def require_reader_files(folder: Path) -> None:
    """Accept a model with all that loading it by name, and later its export, takes.

    Raises:
        InputError: A file of the tokenizer or the name of its architecture is missing or damaged,
            or the tokenizer needs code of its own.
    """
    # Other kinds of vocabularies take sentencepiece or tiktoken, which no reader of an export has.
    vocabularies = (("tokenizer.json",), ("vocab.json", "merges.txt"))
    needed = {
        "tokenizer_config.json": (folder / "tokenizer_config.json").is_file(),
        "tokenizer.json (or vocab.json and merges.txt)": any(
            all((folder / name).is_file() for name in names) for names in vocabularies
        ),
        "architectures in config.json": bool(read_config(folder).get("architectures")),
    }
    missing = [what for what, there in needed.items() if not there]
    if missing:
        raise InputError(
            f"a model folder must hold its tokenizer and name its architecture; {folder} lacks "
            f"{', '.join(missing)}: save model and tokenizer into it with save_pretrained."
        )
    check_json_files(folder)
    refuse_foreign_tokenizer(folder)


def check_json_files(folder: Path) -> None:
    """Accept a model whose settings and tokenizer transformers can read.

    Raises:
        InputError: A file is no JSON object, or begins with a byte-order mark; of these only the
            mark of config.json is read past.
    """
    remedy = "save the tokenizer again with save_pretrained"
    for name in ("tokenizer_config.json", "tokenizer.json"):
        if (folder / name).is_file():
            held = read_json_object(folder / name, remedy)
            if name == "tokenizer.json" and not isinstance(held.get("model"), dict):
                raise InputError(f"{folder / name} must hold a model; it has none: {remedy}.")
    for path in sorted(folder.glob("*.json")):
        with path.open("rb") as file:
            begins = file.read(len(codecs.BOM_UTF8))
        if begins == codecs.BOM_UTF8 and path.name != "config.json":
            raise InputError(
                f"{path} must begin with its text, for transformers reads it; it begins with a "
                "byte-order mark: save it as UTF-8 without one."
            )
