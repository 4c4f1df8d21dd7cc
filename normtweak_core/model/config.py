"""Which model, in which arithmetic."""

from typing import Literal

from pydantic import BaseModel, Field


class ModelConfig(BaseModel, frozen=True, extra="forbid"):
    """The float model to start from."""

    source: str = Field(
        "reference:llama",
        min_length=1,
        description="A folder, a hub id, or reference:llama | reference:neox.",
    )
    revision: str | None = Field(None, description="Hub revision; hub ids only.")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32",
        description="Arithmetic of the float model and of the streams; auto: the type it is stored "
        "in, at half the memory of float32 where that has 16 bits.",
    )
    device: str = Field("auto", description="auto | cpu | cuda | cuda:N.")
