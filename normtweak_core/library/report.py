"""What a call of `quantize` tells about its result."""

from pydantic import BaseModel

from normtweak_core.calibration.quality import QualityReport
from normtweak_core.quantization.report import BlockReport
from normtweak_core.tweak.report import FinalTuneReport
from normtweak_core.vision.kinds import calibrated_in_words
from normtweak_core.widths.report import Allotment


class Report(BaseModel, frozen=True):
    """The result in numbers; as text or on a notebook's page it is a table of the blocks."""

    format: str
    dtype: str  # the float type of the export
    refused: dict[str, str]  # why, by float type: those passed over for it
    float_type_note: str  # what a person should know of it
    export_sha256: str
    size_bytes: int  # of the export
    float_bytes: int  # of the float model's folder
    bits_per_weight: float  # all that is stored for the quantized linears but their biases
    calibration: QualityReport
    blocks: list[BlockReport]
    final_tune: FinalTuneReport | None
    allotment: Allotment | None = None  # where the widths were left to a budget
    seconds: float

    def problems(self) -> list[str]:
        """Return what a person must act on, one sentence each."""
        return [problem for block in self.blocks for problem in block.problems()]

    def notes(self) -> list[str]:
        """Return what is good to know and asks for nothing."""
        told = [note for block in self.blocks for note in block.notes()]
        told += self.final_tune.notes() if self.final_tune else []
        images, tokens = self.calibration.image_windows, self.calibration.image_tokens
        told += [] if images is None else [calibrated_in_words(images, tokens or 0)]
        told += [f"{self.dtype}: {self.float_type_note}"] if self.float_type_note else []
        told += [f"not {name}: {why}" for name, why in self.refused.items()]
        return [*told, *(f"calibration: {reason}" for reason in self.calibration.reasons)]

    def __str__(self) -> str:
        lines = [self._summary()]
        for block, drift, after, tweak, training in [self._heads(), *self._rows()]:
            lines.append(f"{block:>5}  {drift:>8}  {after:>8}  {tweak:<11}  {training}")
        return "\n".join(lines + [f"problem: {text}" for text in self.problems()] + self.notes())

    def _repr_markdown_(self) -> str:
        lines = [
            self._summary(),
            "",
            f"| {' | '.join(self._heads())} |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in self._rows()]
        told = [f"* **problem:** {text}" for text in self.problems()]
        return "\n".join([*lines, "", *told, *(f"* {text}" for text in self.notes())])

    def _summary(self) -> str:
        tune = self.final_tune
        tuned = "" if tune is None else f"; final tune {tune.outcome}"
        widths = f"; {self.allotment.in_words()}" if self.allotment else ""
        return (
            f"{self.format} in {self.dtype}: {self.size_bytes / 1e6:.2f} MB of "
            f"{self.float_bytes / 1e6:.2f} MB, {self.bits_per_weight:.3f} bits per quantized "
            f"weight{tuned}{widths}"
        )

    def _heads(self) -> tuple[str, ...]:
        return ("block", "drift", "behind", "norm tweak", "training")

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                str(block.block),
                f"{block.drift_quantized:.4f}",
                f"{block.drift_behind:.4f}",
                block.tweak.outcome if block.tweak else "off",
                block.training.outcome if block.training else "off",
            )
            for block in self.blocks
        ]
