"""The float model beside a training that learns from it."""

from typing import TYPE_CHECKING, Any

from normtweak_core.lazy import lazy
from tasks.models.job import Job, torch_dtype

if TYPE_CHECKING:
    from normtweak_core.training.processes import Processes

loading = lazy("normtweak_core.model.loading")
spreading = lazy("normtweak_core.spread")

# Of each trained weight there will be a gradient, two moments and the best so far.
OF_A_TRAINED_WEIGHT = 4


def teacher_of(job: Job, trained: Any, here: "Processes") -> Any:
    """Return the float model, spread where it does not fit beside a training.

    Args:
        job: Of the run.
        trained: The model that is trained, in memory.
        here: The processes that share the training; several of them share the float model too.
    """
    dtype = torch_dtype(job.model.dtype)
    if here.count > 1:
        return loading.load_causal_lm(job.folder, dtype, here.loads_on(job.device))
    weights = sum(one.nbytes for one in trained.parameters() if one.requires_grad)
    beside = OF_A_TRAINED_WEIGHT * weights
    return spreading.whole_or_spread(job.folder, dtype, job.device, beside)
