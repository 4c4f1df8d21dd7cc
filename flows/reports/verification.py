"""What `normtweak verify` compared, in sentences."""

from pathlib import Path

from normtweak_core.export.verification.verify import VerificationReport


def report_lines(folder: Path, report: VerificationReport) -> list[str]:
    """Return what an independent reader found, line by line."""
    per_layer = report.layer_difference is not None  # the packed weights are what is compared
    kind = "mean" if report.logit_statistic == "mean" else "largest"
    versions = ", ".join(f"{name} {version}" for name, version in report.reader_versions.items())
    return [
        f"{folder}: the reader finds what was quantized",
        f"format: {report.format}, opened by {versions}",
        f"weights: {report.num_tensors} tensors equal bit for bit, {report.num_quantized} of them "
        f"{'packed' if per_layer else 'dequantized'}",
        *_layer_line(report),
        f"logits: {kind} difference {report.logit_difference:.2g} of the largest logit, allowed "
        f"{report.logit_tolerance:.2g}; same first choice at {100 * report.argmax_agreement:.1f} %",
        f"tokenizer: {'same answers' if report.tokenizer else 'none in the export'}",
        f"payload SHA-256: {report.payload_sha256}",
        f"seconds: {report.seconds:.1f}",
    ]


def _layer_line(report: VerificationReport) -> list[str]:
    if report.layer_difference is None:
        return []
    return [
        f"linears: each alone, largest difference {report.layer_difference:.2g} of its largest "
        f"output, allowed {report.layer_tolerance:.2g}"
    ]
