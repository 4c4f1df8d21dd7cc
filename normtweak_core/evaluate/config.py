"""What the quantized model is measured on."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from normtweak_core.errors import InputError

TaskName = Literal[
    "lambada_openai",
    "hellaswag",
    "piqa",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "boolq",
]


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
    tasks: list[TaskName] = Field([], description="Named tasks of lm-eval to score as well.")
    data: str | None = Field(
        None,
        description="Folder of the tasks' items, as TASK/*.jsonl with the fields of the hub's data "
        "set; null: the data sets themselves, from the hub.",
    )
    max_items: int | None = Field(
        None, ge=2, description="Only so many items of each task, from the first; null: all."
    )

    @field_validator("tasks")
    @classmethod
    def _are_named_once(cls, tasks: list[str]) -> list[str]:
        if len(set(tasks)) != len(tasks):
            raise InputError("must name each task once", key="tasks", found=f"found {tasks}")
        return tasks

    @model_validator(mode="after")
    def _has_tasks_for_what_only_they_read(self) -> "EvaluationConfig":
        for key in ("data", "max_items"):
            if not self.tasks and getattr(self, key) is not None:
                raise InputError(
                    "is read by named tasks alone",
                    key=key,
                    found="found no tasks",
                    remedy="name tasks or leave it out",
                )
        return self
