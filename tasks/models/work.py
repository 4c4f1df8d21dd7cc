"""What every stage of a run is given: the recipe, the model it is about, and the machine."""

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from normtweak_core.calibration.config import CalibrationConfig
from tasks.engine.progress import Progress
from tasks.models.given_data import calibration_length
from tasks.models.job import Job
from tasks.models.measured_on import Items, Text, items_of, text_of


@dataclass
class Work:
    """A recipe that is carried out on a model."""

    recipe: Any
    job: Job
    data: CalibrationConfig  # the section of the text: what is calibrated with or trained on
    streams: bool = True  # whether the model is taken block by block
    name: str = ""  # in front of the names of its blocks: the cell of an ablation
    progress: Progress = field(default_factory=Progress, kw_only=True)
    modules: set[str] = field(default_factory=set, kw_only=True)  # where code of asked keys begins

    @property
    def shared(self) -> dict[str, Any]:
        """What all stages of the job read, as values of a key."""
        return {"dtype": self.job.model.dtype}

    @property
    def device(self) -> str:
        """The device that stages compute on."""
        return self.job.device

    @property
    def threads(self) -> int:
        """Threads that share the arithmetic."""
        return self.job.threads

    @functools.cached_property
    def length(self) -> int:
        """Tokens per window that is calibrated with or trained on."""
        return calibration_length(self.job, self.data)

    @functools.cached_property
    def text(self) -> Text:
        """The text that is measured on.

        Raises:
            InputError: It does not exist, or its windows are longer than the model's context.
        """
        config = self.recipe.evaluation.perplexity
        return text_of(config, self.job.source, self.length, self.job.context)

    @functools.cached_property
    def items(self) -> list[Items]:
        """The items of the named tasks that are measured on.

        Raises:
            InputError: A file is missing, or no commit is known of a data set of the hub.
        """
        return items_of(self.recipe.evaluation)

    def training_shown(self, training: Any) -> AbstractContextManager[Any]:
        """Return what takes steps done, steps, loss and tokens/s of a training, to show them."""
        return nullcontext(lambda *_: None)
