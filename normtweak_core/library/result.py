"""A quantized model as `quantize` gives it back."""

import contextlib
import os
import weakref
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normtweak_core.export.float_type import DTYPES
from normtweak_core.export.loading import load_export
from normtweak_core.export.record import ExportRecord
from normtweak_core.export.verification.verify import (
    VerificationReport,
    reader_python,
    verify_export,
)
from normtweak_core.export.writer import copy_export
from normtweak_core.library.report import Report
from normtweak_core.library.steps import ROOT
from normtweak_core.model.tokenizer import load_tokenizer
from normtweak_core.paths import given_path


class Quantized:
    """A quantized model, already written as stock readers open it.

    Until it is saved it lies in the system's temporary folder (TMPDIR) and goes with this object.

    Attributes:
        report: What happened to every block, and what came of it.
        record: What was written: format, float type, size, hash.
    """

    def __init__(
        self,
        record: ExportRecord,
        report: Report,
        source: Path,
        device: str,
        held: contextlib.ExitStack,
    ):
        """Take over a written export.

        Args:
            record: The export.
            report: What is told of it.
            source: Folder of the float model.
            device: Where the model lives.
            held: What goes with this object: the export's temporary folder.
        """
        self.record, self.report = record, report
        self._source, self._device = source, device
        weakref.finalize(self, held.close)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model that the export stands for, dense in memory, in the float type of the export.

        Its logits are those that readers of the export compute. ``model.float()`` calculates on in
        float32.
        """
        dtype = DTYPES[self.record.dtype]
        return load_export(self.record.folder, self._source, dtype, self._device)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, which is the float model's."""
        return load_tokenizer(self.record.folder)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the export to a folder that ``AutoModelForCausalLM.from_pretrained`` opens.

        Of a model that reads images it is ``AutoModelForImageTextToText``.

        Args:
            folder: New, empty, or an earlier export, which is replaced.

        Returns:
            The folder.

        Raises:
            InputError: The folder is in the way.
        """
        return copy_export(self.record, given_path(folder, "folder")).folder

    def verify(
        self, python: str | os.PathLike[str] | None = None, timeout: float | None = None
    ) -> VerificationReport:
        """Let stock readers open the export in a process without this package, and compare.

        Args:
            python: Interpreter whose packages read the format; None: this one, and for gptq the one
                of ``make reader-gptq``.
            timeout: Seconds until the reader is ended; None: by the size of the model.

        Raises:
            VerificationError: They find something else than was quantized.
        """
        folder = self.record.folder
        reader = reader_python(folder, ROOT) if python is None else Path(python)
        return verify_export(folder, reader, timeout)

    def __repr__(self) -> str:
        return f"Quantized({self.report})"

    def _repr_markdown_(self) -> str:
        return self.report._repr_markdown_()
