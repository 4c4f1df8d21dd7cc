"""What `normtweak evaluate` and `normtweak compare` are asked, as one pydantic model each."""

from typing import Literal, Self

from pydantic import Field, model_validator

from flows.recipes.base import Request
from normtweak_core.evaluate.config import EvaluationConfig

# What an option of the command sets.
OPTIONS = {
    "evaluation.tasks": "--tasks",
    "evaluation.data": "--data",
    "evaluation.max_items": "--max-items",
    "evaluation.perplexity.path": "--text",
    "evaluation.perplexity.length": "--length",
    "evaluation.perplexity.max_tokens": "--max-tokens",
    "models": "MODEL",
    "against": "--against",
    "dtype": "--dtype",
    "device": "--device",
    "model.source": "MODEL",
    "model.device": "--device",
}


class EvaluationRequest(Request, frozen=True, extra="forbid"):
    """Models to measure, and on what."""

    NAMES = OPTIONS

    models: list[str] = Field(
        min_length=1,
        description="Folders, hub ids, reference:NAME, models:/NAME/VERSION, models:/NAME@ALIAS or "
        "GGUF files.",
    )
    against: str | None = Field(None, description="The float model to measure it beside.")
    evaluation: EvaluationConfig = EvaluationConfig()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Float type that the models compute in; auto: a quantized model in that of its "
        "config.json, as anybody opens it, a float model in float32.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")

    @model_validator(mode="after")
    def _names_each_model_once(self) -> Self:
        if len(set(self.models)) != len(self.models):
            raise ValueError(f"each model must be named once; found {', '.join(self.models)}")
        return self
