"""The evaluation stages: the float model alone, once per model, and the export beside it."""

from pathlib import Path
from typing import Any

from prefect import task

from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import PerplexityConfig
from normtweak_core.model.source import REFERENCE_PREFIX, model_context
from tasks import events
from tasks.artifacts import content_hash, file_sha256
from tasks.environment import state_root
from tasks.job import STAGE, Job, torch_dtype
from tasks.progress import Progress
from tasks.results import Evaluation, ExportResult

FLOAT_SOURCES = [
    "normtweak_core.calibration.text",
    "normtweak_core.evaluate.divergence",
    "normtweak_core.model.loading",
]
EXPORT_SOURCES = [*FLOAT_SOURCES, "normtweak_core.export.loading"]
HELD_OUT_TEXT = "held-out.jsonl"


def evaluation_text(job: Job, config: PerplexityConfig) -> Path:
    """Return the text to evaluate on.

    Raises:
        InputError: None is given and the model ships none, or the file does not exist.
    """
    if config.path is not None:
        path = Path(config.path).expanduser()
        if not path.is_file():
            raise InputError(
                f"evaluation.perplexity.path must be a text file; {config.path} does not exist"
            )
        return path
    if not job.source.name.startswith(REFERENCE_PREFIX):
        raise InputError(
            "evaluation.perplexity.path is required for a model that ships no held-out text; "
            f"found none for {job.source.name}: give a .txt or .jsonl file"
        )
    return job.folder / HELD_OUT_TEXT


def evaluation_length(job: Job, config: PerplexityConfig, calibration_length: int) -> int:
    """Return the tokens per window.

    Raises:
        InputError: More is asked than the model's context holds.
    """
    length, context = config.length or calibration_length, model_context(job.folder)
    if context is not None and length > context:
        raise InputError(
            f"evaluation.perplexity.length must be at most the model's context of {context} "
            f"tokens; found {length}: lower it"
        )
    return length


def evaluation_inputs(job: Job, config: PerplexityConfig, length: int) -> dict[str, Any]:
    """Return the recipe fields and hashes that an evaluation reads."""
    return {
        "text": file_sha256(evaluation_text(job, config)),
        "length": length,
        "max_tokens": config.max_tokens,
        "model": job.fingerprint.sha256,
        "tokenizer": job.tokenizer_sha256,
    }


def float_evaluation_key(job: Job, inputs: dict[str, Any]) -> str:
    """Return the key of the float model's evaluation."""
    return job.key("evaluate-float", parents=[], inputs=inputs, sources=FLOAT_SOURCES)


def evaluation_key(job: Job, export: ExportResult, inputs: dict[str, Any]) -> str:
    """Return the key of an export's evaluation."""
    return job.key(
        "evaluate", parents=[content_hash(export)], inputs=inputs, sources=EXPORT_SOURCES
    )


def evaluation_windows(job: Job, config: PerplexityConfig, length: int) -> Any:
    """Return the windows of the evaluation text, up to ``max_tokens``.

    Raises:
        InputError: The text is empty, malformed or shorter than one window.
    """
    from transformers import AutoTokenizer

    from normtweak_core.calibration.text import cut_windows, read_documents

    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    windows = cut_windows(read_documents(evaluation_text(job, config)), tokenizer, length)
    return windows if config.max_tokens is None else windows[: max(1, config.max_tokens // length)]


@task(task_run_name="evaluate-float", **STAGE)
def evaluate_float_stage(
    key: str, config: PerplexityConfig, length: int, job: Any, progress: Any
) -> Evaluation:
    """Return how well the float model predicts the text."""
    from normtweak_core.evaluate.divergence import perplexity
    from normtweak_core.model.loading import load_causal_lm

    events.record("evaluate-float", part="begin")
    bar: Progress = progress
    model = load_causal_lm(job.folder, torch_dtype(job.model.dtype), job.device)
    with bar.stage("evaluate float model", "windows") as advance:
        result = perplexity(model, evaluation_windows(job, config, length), advance)
    return Evaluation(metrics=result.metrics("float"))


@task(task_run_name="evaluate", **STAGE)
def evaluate_stage(
    key: str, config: PerplexityConfig, length: int, job: Any, export: Any, progress: Any
) -> Evaluation:
    """Return the export's metrics beside the float model's, as reloaded from the export.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
    """
    from normtweak_core.evaluate.divergence import compare
    from normtweak_core.export.loading import load_export
    from normtweak_core.model.loading import load_causal_lm

    events.record("evaluate", part="begin")
    bar: Progress = progress
    dtype = torch_dtype(job.model.dtype)
    float_model = load_causal_lm(job.folder, dtype, job.device)
    quantized = load_export(state_root() / export.folder, job.folder, dtype, job.device)
    with bar.stage("evaluate export", "windows") as advance:
        result = compare(quantized, float_model, evaluation_windows(job, config, length), advance)
    sizes = {"bits_per_weight": export.bits_per_weight, "size_bytes": float(export.size_bytes)}
    return Evaluation(metrics=result.metrics() | sizes)
