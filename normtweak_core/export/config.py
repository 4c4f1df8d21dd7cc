"""The format a quantized model is written in."""

from typing import Literal

from pydantic import BaseModel, Field


class ExportConfig(BaseModel, frozen=True, extra="forbid"):
    """On-disk format and float type of what is not quantized."""

    format: Literal["auto", "compressed-tensors", "gptq", "bitnet", "gguf"] = Field(
        "auto",
        description="auto: compressed-tensors, and bitnet for ternary models. bitnet writes a GGUF "
        "file beside it where it can; gguf is bitnet that must.",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="auto: float16 where every tensor fits its range, else bfloat16."
    )
