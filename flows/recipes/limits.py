"""What a run may take of the machine; it changes no result."""

from pydantic import BaseModel, ByteSize, Field


class LimitsConfig(BaseModel, frozen=True, extra="forbid"):
    """What a run may take of the machine: a stage obeys, or is refused before the start."""

    memory: ByteSize | None = Field(
        None, gt=0, description="Main memory of the run's own process, such as 2GiB; null: all."
    )
    disk: ByteSize | None = Field(
        None, gt=0, description="What a run may still write, such as 50GB; null: what is free."
    )
    threads: int | None = Field(
        None, ge=1, description="Threads of a computation; null: one for each core."
    )
