"""One family in one format: quantized through the library, written, opened by its reader."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import normtweak_core
from normtweak_core.calibration.config import CalibrationConfig
from normtweak_core.dry_run import dry_run
from normtweak_core.errors import InputError
from normtweak_core.export.config import ExportConfig
from normtweak_core.export.formats.checks import check_ternary_exportable, linear_shapes
from normtweak_core.export.record import ExportRecord
from normtweak_core.export.sizes import size_check
from normtweak_core.export.verification.verify import VerificationReport, verify_export
from normtweak_core.export.writer import write_ternary_export
from normtweak_core.model.architecture import read_config
from normtweak_core.model.checkpoint import stored_names
from normtweak_core.model.layout import block_list
from normtweak_core.model.loading import load_causal_lm
from normtweak_core.ternary.config import TernaryConfig
from normtweak_core.ternary.finished import FinishedLayers, other_tensors
from normtweak_core.ternary.surgery import apply_surgery, plan_surgery, set_lambdas, trained_blocks
from normtweak_core.vision.kinds import refuse_images
from tests.families.models import Write

SAMPLES, LENGTH, STEPS = 8, 16, 5
GROUP = 32
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A column of the matrix."""

    form: str
    bits: int | None  # None: ternary
    reader: str
    symmetric: bool = False

    @property
    def title(self) -> str:
        """What stands above it."""
        if self.bits is None:
            return f"{self.form}, ternary"
        return f"{self.form}, {self.bits} bits{', symmetric' if self.symmetric else ''}"


PLAIN = "transformers with compressed-tensors"
CASES = {
    "zeros": Case("compressed-tensors", 3, f"{PLAIN}, unpacked while it loads"),
    "packed": Case("compressed-tensors", 4, f"{PLAIN}, packed", symmetric=True),
    "gptq": Case("gptq", 4, "transformers with optimum and gptqmodel"),
    "gguf": Case("gguf", 4, "the package gguf, and transformers for the folder beside it"),
    "bitnet": Case("bitnet", None, "transformers"),
}
# Why a model is calibrated on given windows after all.
WRITES_NOTHING = ("must be written by a model", "must give usable text")


def attempt(write: Write, case: Case) -> Row:
    """Return what became of a family in a format: what its reader found, or why it is refused.

    Args:
        write: Writes the model to a folder.
        case: Format and grid.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        try:
            model = write(Path(root) / "model")
            found = _ternary(model) if case.bits is None else _on_a_grid(model, case)
        except InputError as refused:
            found = {"refused": str(refused)}
        except Exception as error:  # whatever a family leads to is what this looks for
            found = {"failed": f"{type(error).__name__}: {error}".replace(root, "")}
    return found | {"seconds": round(time.monotonic() - began, 1)}


def _on_a_grid(model: Path, case: Case) -> Row:
    """Return what a reader finds of a model that has gone the whole way of `quantize`."""
    written = CalibrationConfig(samples=SAMPLES, length=LENGTH, languages=None)
    given = _windows(SAMPLES)
    said: Mapping[str, Any] = {
        "bits": case.bits,
        "group_size": GROUP,
        "symmetric": case.symmetric,
        "export": case.form,
        "norm_tweak": True,
        "final_tune": {"steps": STEPS},
        "progress": False,
    }
    why = None
    try:
        made = normtweak_core.quantize(model, calibration=written, **said)
    except InputError as refused:
        if not any(words in str(refused) for words in WRITES_NOTHING):
            raise
        why = str(refused)
        made = normtweak_core.quantize(model, calibration=given, **said)
    found = _found(made.record, model, made.verify())
    return found | {"given_windows": why}


def _ternary(folder: Path) -> Row:
    """Return what a reader finds of a model after ternary surgery, untrained."""
    export = ExportConfig(format="bitnet")
    refuse_images(read_config(folder), "ternary training")
    check_ternary_exportable(export, linear_shapes(folder))
    dry_run(folder, torch.float32, "cpu", block_list(stored_names(folder))[1], streams=False)
    model = load_causal_lm(folder, torch.float32, "cpu")
    windows = _windows(2)
    plan, config = plan_surgery(model, windows), TernaryConfig()
    apply_surgery(model, plan, config)
    set_lambdas(model, [1.0] * len(trained_blocks(model)), config.ramp_norm)
    record = write_ternary_export(
        folder.with_name("ternary"),
        folder,
        FinishedLayers(model, torch.float32),
        other_tensors(model),
        ExportConfig(format="bitnet", dtype="float32"),
        rms_norm_eps=plan.eps,
        dtype=torch.float32,
        windows=windows,
    )
    return _found(record, folder, verify_export(record.folder))


def _windows(count: int) -> Tensor:
    return torch.randint(4, 90, (count, LENGTH), generator=torch.Generator().manual_seed(1))


def _found(record: ExportRecord, model: Path, report: VerificationReport) -> Row:
    size = size_check(record.folder, model)
    size.require_sound()
    return {
        "difference": report.logit_difference,
        "statistic": report.logit_statistic,
        "agreement": report.argmax_agreement,
        "layer_difference": report.layer_difference,
        "gguf_tensors": report.gguf_tensors,
        "quantized": report.num_quantized,
        "linears": size.in_words(),
        "dtype": record.dtype,
        "versions": report.reader_versions,
    }
