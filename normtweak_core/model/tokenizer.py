"""The tokenizer of a folder in memory: the one place that opens one, and runs no code of it."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import (
    ADDED_TOKENS_FILE,
    FULL_TOKENIZER_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
)
from transformers.utils.hub import (
    CHAT_TEMPLATE_DIR,
    CHAT_TEMPLATE_FILE,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
)

from normtweak_core.errors import InputError
from normtweak_core.model.architecture import first_line, readable_by_transformers
from normtweak_core.model.foreign_code import refuse_foreign_tokenizer
from normtweak_core.model.tokenizer_files import tokenizer_files

# What transformers looks for whatever the class of the tokenizer.
COMMON_FILES = (
    ADDED_TOKENS_FILE,
    FULL_TOKENIZER_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
    CHAT_TEMPLATE_FILE,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
)


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder, as ``from_pretrained`` makes it.

    Args:
        folder: As ``save_pretrained`` writes it.
        gguf_file: Name of the file in it that holds the tokenizer instead.

    Raises:
        InputError: There is none that the code in transformers can read, or it reads a file that
            neither keys nor exports know of.
    """
    refuse_foreign_tokenizer(folder)
    gguf = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        with readable_by_transformers(folder) as readable:
            tokenizer = AutoTokenizer.from_pretrained(
                readable, local_files_only=True, trust_remote_code=False, **gguf
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _unreadable(folder, error) from error
    except Exception as error:
        if type(error) is not Exception:  # tokenizers, written in Rust, raises nothing narrower
            raise
        raise _unreadable(folder, error) from error
    if gguf_file is None:
        _require_known_files(tokenizer, folder)
    return tokenizer


def files_read(tokenizer: PreTrainedTokenizerBase, folder: Path) -> set[Path]:
    """Return the files of its folder that transformers read to make this tokenizer, as it says."""
    settings = getattr(tokenizer, "init_kwargs", {})  # Mistral's own class has neither of the two
    names = {*COMMON_FILES, *getattr(tokenizer, "vocab_files_names", {}).values()}
    names |= {*settings.get("fast_tokenizer_files", ())}
    found = {folder / name for name in names}
    found |= {*(folder / CHAT_TEMPLATE_DIR).glob("*.jinja")}
    # What it was given as the path of a vocabulary.
    given = (Path(value) for value in settings.values() if isinstance(value, str))
    found |= {path for path in given if path.is_absolute() and path.parent == folder}
    return {path for path in found if path.is_file()}


def _require_known_files(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    unknown = sorted(files_read(tokenizer, folder) - {*tokenizer_files(folder)})
    if unknown:
        raise InputError(
            "the files of a tokenizer must be of a kind that exports carry along; that of "
            f"{folder} reads {unknown[0].relative_to(folder)}, which is none: save the tokenizer "
            "again with save_pretrained, which writes tokenizer.json."
        )


def _unreadable(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"a model must come with a tokenizer that transformers reads; that of {folder} is not: "
        f"{type(error).__name__}: {first_line(error)}. Save it again with save_pretrained."
    )
