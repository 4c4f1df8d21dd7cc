"""Whether an export is as large as widths and shapes say, and what became of every linear."""

from typing import Any

from normtweak_core.lazy import lazy
from tasks.engine import events
from tasks.engine.artifacts import Result
from tasks.engine.environment import state_root
from tasks.engine.stage import Found, stage
from tasks.models.work import Work
from tasks.results import ExportResult

sizes = lazy("normtweak_core.export.sizes")


class SizeCheckResult(Result, frozen=True):
    """What was found, see `SizeCheck`."""

    stored_bytes: int
    linears: str  # what became of them, in words
    kept: dict[str, str]  # in float, and why
    twice: list[list[str]]  # names of equal matrices
    gguf: str | None = None  # what a GGUF file beside a grid holds, in words

    def facts(self) -> dict[str, str]:
        """Return what the report and the registry say of it."""
        found = {"linears": self.linears, "tensors": f"{self.stored_bytes:,} bytes, as predicted"}
        if self.gguf:
            found["gguf"] = f"{self.gguf}, as predicted"
        if self.twice:
            found["stored twice"] = "; ".join(" = ".join(names) for names in self.twice)
        return found


def _reads(work: Work, found: Found, part: None) -> dict[str, Any]:
    return {"model": work.job.fingerprint.sha256}


@stage("size check", needs=("export",), reads=_reads)
def size_check(work: Work, export: ExportResult) -> SizeCheckResult:
    """Return what the export holds, once it is what it should hold.

    Raises:
        VerificationError: A tensor has another size than its width and shape say, or nothing is
            known of a linear.
    """
    events.record("size check", part="begin")
    found = sizes.size_check(state_root() / export.folder, work.job.folder)
    found.require_sound()
    return SizeCheckResult(
        stored_bytes=found.stored_bytes,
        linears=found.in_words(),
        kept=found.kept,
        twice=found.twice,
        gguf=found.gguf and found.gguf.in_words(),
    )
