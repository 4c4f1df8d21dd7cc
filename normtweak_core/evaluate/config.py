"""What the quantized model is measured on."""

from pydantic import BaseModel, Field


class PerplexityConfig(BaseModel, frozen=True, extra="forbid"):
    """Perplexity and divergence on one text."""

    path: str | None = Field(
        None, description="Text file (.txt, .jsonl); null: held-out text of a reference model."
    )
    length: int | None = Field(None, ge=8, description="Tokens per window; null: as calibration.")
    max_tokens: int | None = Field(None, ge=8, description="Stop after this many; null: all.")


class EvaluationConfig(BaseModel, frozen=True, extra="forbid"):
    """The evaluation of one model."""

    perplexity: PerplexityConfig = PerplexityConfig()
    tasks: list[str] = Field([], max_length=0, description="Not built yet: must stay empty.")
    data: None = Field(None, description="Not built yet: must stay null.")
