"""What the writer of an export says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from normtweak_core.export.formats.scheme import AnyScheme
from normtweak_core.export.origin import Origin, SourceCard


@dataclass(frozen=True)
class ExportRecord:
    """What was written, and how large it is."""

    folder: Path
    format: str
    dtype: str
    scheme: AnyScheme
    payload_sha256: str
    size_bytes: int  # of the payload
    bits_per_weight: float  # all that is stored for the quantized linears but their biases
    consumers: Mapping[str, object] | None = None  # of bitnet: as in the manifest
    # With how many images it was calibrated; None: it reads text alone.
    image_windows: int | None = None
    origin: Origin | None = None  # of codes that another tool has made
    source: SourceCard = field(default_factory=SourceCard)  # what the float model's folder says
