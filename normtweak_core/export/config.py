"""The format a quantized model is written in."""

from typing import Literal

from pydantic import BaseModel, Field

Format = Literal["auto", "compressed-tensors", "gptq", "bitnet", "gguf"]


class AnyExportConfig(BaseModel, frozen=True, extra="forbid"):
    """On-disk format and float type of what is not quantized, and how long its proof may take."""

    format: Format = Field(
        "auto",
        description="auto: compressed-tensors, and bitnet for ternary models. bitnet writes a GGUF "
        "file beside it where it can. gguf: with a GGUF file beside it that must be exact.",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="auto: the first of float16, bfloat16 and float32 in which readers can run it.",
    )
    verify_timeout: float | None = Field(
        None,
        gt=0,
        description="Seconds that the independent reader may take; null: by the size of the model.",
    )

    @property
    def written(self) -> dict[str, str]:
        """What decides which bytes are written."""
        return {"format": self.format, "dtype": self.dtype}

    @property
    def allows_inexact(self) -> bool:
        """Whether a GGUF file may hold other weights than the export beside it."""
        return False


class ExportConfig(AnyExportConfig, frozen=True, extra="forbid"):
    """The same for linears on a grid, which not every type of a GGUF file holds to the bit."""

    inexact: Literal["refuse", "allow"] = Field(
        "refuse",
        description="Of a gguf file that cannot hold the grid to the bit: refuse the recipe, or "
        "allow the nearest that it holds, and say how far that is.",
    )

    @property
    def written(self) -> dict[str, str]:
        """What decides which bytes are written."""
        return super().written | ({"inexact": self.inexact} if self.allows_inexact else {})

    @property
    def allows_inexact(self) -> bool:
        """Whether a GGUF file may hold other weights than the export beside it."""
        return self.format == "gguf" and self.inexact == "allow"
