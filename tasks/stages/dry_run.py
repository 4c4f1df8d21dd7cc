"""The first stage of every run that makes an export: a few tokens through all that will be done."""

from typing import Any

from prefect import task

from tasks.engine.artifacts import Result
from tasks.models.job import STAGE, Job, torch_dtype

SOURCES = [__name__, "normtweak_core.dry_run"]


class DryRunResult(Result, frozen=True):
    """What was looked at, see `normtweak_core.dry_run`."""

    blocks: list[int]
    uncalled: list[str]


def dry_run_key(job: Job, streams: bool = True) -> str:
    """Return the key of this stage."""
    inputs = {"model": job.fingerprint.sha256, "num_blocks": job.blocks[1], "streams": streams}
    return job.key("dry-run", parents=[], inputs=inputs, sources=SOURCES)


@task(task_run_name="dry-run", **STAGE)
def dry_run_stage(key: str, job: Any, streams: bool) -> DryRunResult:
    """Return what was looked at of a model that can be quantized, exported and verified.

    Raises:
        InputError: The model works in a way that a run cannot follow.
        NonFiniteError: Its logits are not finite, or one of its weights.
    """
    from normtweak_core.dry_run import dry_run

    done = dry_run(
        job.folder, torch_dtype(job.model.dtype), job.device, job.blocks[1], streams=streams
    )
    return DryRunResult(blocks=done.blocks, uncalled=done.uncalled)
