"""What a run may take of the machine; it changes no result."""

from typing import Any

from pydantic import BaseModel, ByteSize, Field

# Of a recipe whose blocks are quantized; no key holds it.
DEVICES: Any = Field(
    "auto",
    description="Processes that share the windows of each block; auto: one for each GPU, or one on "
    "the CPU. The bytes are the same for any number.",
)

# Of a recipe that trains.
TRAINING_DEVICES: Any = Field(
    "auto",
    description="Processes that share the training end to end: batch and models are divided among "
    "them; auto: as many GPUs as divide the batch, or one process on the CPU. Another number gives "
    "other last bits.",
)


class LimitsConfig(BaseModel, frozen=True, extra="forbid"):
    """What a run may take of the machine: a stage obeys, or is refused before the start."""

    memory: ByteSize | None = Field(
        None,
        gt=0,
        description="Main memory of the run's own process and those of `devices`, such as "
        "2GiB; null: all.",
    )
    disk: ByteSize | None = Field(
        None, gt=0, description="What a run may still write, such as 50GB; null: what is free."
    )
    threads: int | None = Field(
        None, ge=1, description="Threads of a computation; null: one for each core."
    )
