"""The stage that settles the float type of an export, before any scale is rounded to it."""

from typing import Any

from prefect import task

from normtweak_core.export.config import ExportConfig
from tasks.artifacts import Result
from tasks.job import STAGE, Job

SOURCES = [__name__, "normtweak_core.export.float_type"]


class FloatType(Result, frozen=True):
    """Name of a torch dtype."""

    dtype: str


def float_type_key(job: Job, config: ExportConfig) -> str:
    """Return the key of this stage."""
    return job.key(
        "float-type",
        parents=[],
        inputs={"export_dtype": config.dtype, "model": job.fingerprint.sha256},
        sources=SOURCES,
    )


@task(task_run_name="float-type", **STAGE)
def float_type_stage(key: str, config: ExportConfig, job: Any) -> FloatType:
    """Return float16 where every tensor fits its range, else bfloat16, or what the recipe says."""
    from normtweak_core.export.float_type import resolve_export_dtype

    return FloatType(dtype=str(resolve_export_dtype(config, job.folder)).removeprefix("torch."))
