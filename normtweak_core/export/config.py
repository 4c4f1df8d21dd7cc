"""The format a quantized model is written in."""

from typing import Literal

from pydantic import BaseModel, Field

Format = Literal["auto", "compressed-tensors", "gptq", "bitnet", "gguf"]


class ExportConfig(BaseModel, frozen=True, extra="forbid"):
    """On-disk format and float type of what is not quantized, and how long its proof may take."""

    format: Format = Field(
        "auto",
        description="auto: compressed-tensors, and bitnet for ternary models. bitnet writes a GGUF "
        "file beside it where it can; gguf is bitnet that must.",
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
