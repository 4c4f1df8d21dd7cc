"""The tokenizer of a folder in memory: the one place that opens one, and runs no code of it."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from normtweak_core.errors import InputError
from normtweak_core.model.architecture import first_line
from normtweak_core.model.foreign_code import refuse_foreign_tokenizer


def load_tokenizer(folder: Path, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder, as ``from_pretrained`` makes it.

    Args:
        folder: As ``save_pretrained`` writes it.
        gguf_file: Name of the file in it that holds the tokenizer instead.

    Raises:
        InputError: There is none that the code in transformers can read.
    """
    refuse_foreign_tokenizer(folder)
    gguf = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **gguf
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise _unreadable(folder, error) from error
    except Exception as error:
        if type(error) is not Exception:  # tokenizers, written in Rust, raises nothing narrower
            raise
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"a model must come with a tokenizer that transformers reads; that of {folder} is not: "
        f"{type(error).__name__}: {first_line(error)}. Save it again with save_pretrained."
    )
