"""The result model of the flow under test; in a module of its own so that a record can name it."""

from typing import Annotated

from pydantic import ConfigDict

from tasks.engine.artifacts import NOT_CONTENT, ArtifactRef, Result


class StageResult(Result):
    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    value: int
    file: ArtifactRef
    seconds: Annotated[float, NOT_CONTENT]
