"""The evaluation stages on a text: one model alone, once per model, and two of them in pairs."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task

from normtweak_core.errors import InputError
from normtweak_core.evaluate.config import PerplexityConfig
from normtweak_core.model.source import REFERENCE_PREFIX, ModelFolder
from normtweak_core.paths import given_path
from tasks.engine import events
from tasks.engine.artifacts import file_sha256, publish_json
from tasks.engine.progress import Progress
from tasks.models.job import STAGE, Job
from tasks.models.subjects import Subject, export_subject, float_subject
from tasks.results import Evaluation, ExportResult

SOURCES = [
    __name__,
    "normtweak_core.calibration.known_ids",
    "normtweak_core.calibration.text",
    "normtweak_core.evaluate.divergence",
    "normtweak_core.evaluate.samples",
    "normtweak_core.model.tokenizer",
]
HELD_OUT_TEXT = "held-out.jsonl"


@dataclass(frozen=True)
class Text:
    """The windows of a text to measure on."""

    path: Path
    length: int  # tokens per window
    max_tokens: int | None  # stop after so many; None: all

    def inputs(self) -> dict[str, Any]:
        """Return what is read, as values of a key."""
        return {
            "text": file_sha256(self.path),
            "length": self.length,
            "max_tokens": self.max_tokens,
        }

    def windows(self, subject: Subject) -> Any:
        """Return the windows as a model's tokenizer cuts them.

        Raises:
            InputError: The text is empty, malformed or shorter than one window.
        """
        from normtweak_core.calibration.text import cut_windows, read_documents

        windows = cut_windows(read_documents(self.path), subject.tokenizer, self.length)
        most = None if self.max_tokens is None else max(1, self.max_tokens // self.length)
        return windows[:most]


def text_of(
    config: PerplexityConfig, source: ModelFolder, calibration_length: int, context: int | None
) -> Text:
    """Return the text of a recipe.

    Args:
        config: What to measure on.
        source: The float model.
        calibration_length: Tokens per window where no other length is asked for.
        context: The longest window the model was made for; None: no limit.

    Raises:
        InputError: The text does not exist, none is given and the model ships none, or a window is
            longer than the model's context.
    """
    length = config.length or calibration_length
    if context is not None and length > context:
        raise InputError(
            f"must be at most the model's context of {context} tokens",
            key="evaluation.perplexity.length",
            found=f"found {length}",
            remedy="lower it",
        )
    return Text(_text_path(config, source), length, config.max_tokens)


def _text_path(config: PerplexityConfig, source: ModelFolder) -> Path:
    if config.path is not None:
        path = given_path(config.path, "evaluation.perplexity.path")
        if not path.is_file():
            raise InputError(
                "must be a text file",
                key="evaluation.perplexity.path",
                found=f"{config.path} does not exist",
            )
        return path
    if not source.name.startswith(REFERENCE_PREFIX):
        raise InputError(
            "is required for a model that ships no held-out text",
            key="evaluation.perplexity.path",
            found=f"found none for {source.name}",
            remedy="give a .txt or .jsonl file",
        )
    return source.path / HELD_OUT_TEXT


def alone_key(subject: Subject, text: Text) -> str:
    """Return the key of a model's evaluation by itself."""
    return subject.key("evaluate-alone", _read_of(text), SOURCES)


def pair_key(subject: Subject, beside: Subject, text: Text) -> str:
    """Return the key of a model's evaluation beside its float model."""
    return subject.key("evaluate", _read_of(text), SOURCES, beside)


def _read_of(text: Text) -> dict[str, Any]:
    # The same bytes are other documents in another kind of file.
    return text.inputs() | {"kind": text.path.suffix.lower()}


def float_evaluation_key(job: Job, text: Text) -> str:
    """Return the key of the float model's evaluation in a run."""
    return alone_key(float_subject(job), text)


def evaluation_key(job: Job, export: ExportResult, text: Text) -> str:
    """Return the key of an export's evaluation in a run."""
    return pair_key(export_subject(job, export), float_subject(job), text)


@task(task_run_name="{label}", **STAGE)
def evaluate_alone_stage(
    key: str, label: str, text: Any, subject: Any, progress: Any
) -> Evaluation:
    """Return how well a model predicts a text; metrics are called ``float``.

    Raises:
        InputError: The text is empty, malformed or shorter than one window, or has tokens that the
            model has no embedding for.
        NonFiniteError: A logit is NaN or infinite.
    """
    from normtweak_core.calibration.known_ids import require_known_ids
    from normtweak_core.evaluate.divergence import perplexity

    events.record(label, part="begin")
    bar: Progress = progress
    windows = text.windows(subject)
    require_known_ids(windows, subject.model, subject.tokenizer, str(text.path))
    with bar.stage(label, "windows") as advance:
        result = perplexity(subject.model, windows, advance)
    details = {"tokens_sha256": tokens_sha256(windows)} | result.model_dump(mode="json")
    return Evaluation(
        metrics=result.metrics("float"), details=publish_json("evaluation", key, details)
    )


@task(task_run_name="{label}", **STAGE)
def evaluate_pair_stage(
    key: str, label: str, text: Any, subject: Any, beside: Any, progress: Any
) -> Evaluation:
    """Return a model's metrics beside those of its float model, on the same tokens.

    The details hold as well what the two write when they are given the same prompts.
    An export is measured as its readers compute; what float32 would make of the same weights is
    told as well, under names that end in ``_float32``.

    Raises:
        InputError: The tokenizers differ, the text is too short, or the vocabularies differ.
        NonFiniteError: A logit is NaN or infinite.
    """
    from normtweak_core.calibration.known_ids import require_known_ids
    from normtweak_core.evaluate.divergence import compare_each
    from normtweak_core.evaluate.samples import side_by_side

    events.record(label, part="begin")
    bar: Progress = progress
    windows = text.windows(beside)
    require_same_tokens(windows, text.windows(subject), beside.name, subject.name)
    for one in (subject, beside):
        require_known_ids(windows, one.model, one.tokenizer, str(text.path))
    models = [subject.model]
    if subject.kind == "export" and subject.dtype != "float32":
        models.append(dataclasses.replace(subject, dtype="float32").model)
    with bar.stage(label, "windows") as advance:
        result, *plain = compare_each(models, beside.model, windows, advance)
    metrics = result.metrics()
    for name in ("perplexity/quantized", "kl/mean"):
        metrics |= {f"{name}_float32": one.metrics()[name] for one in plain}
    written = side_by_side(subject.model, beside.model, beside.tokenizer, windows)
    details = {"tokens_sha256": tokens_sha256(windows)} | result.model_dump(mode="json")
    details["samples"] = [one.model_dump() for one in written]
    return Evaluation(metrics=metrics, details=publish_json("evaluation", key, details))


def require_same_tokens(expected: Any, found: Any, expected_name: str, found_name: str) -> None:
    """Accept two tokenizers that cut the same windows.

    Raises:
        InputError: They do not.
    """
    if expected.shape == found.shape and bool((expected == found).all()):
        return
    raise InputError(
        f"both models must read the same tokens; the tokenizer of {found_name} cuts the text into "
        f"others than that of {expected_name}: compare models that share a tokenizer"
    )


def tokens_sha256(windows: Any) -> str:
    """Return the hash of the token ids that were predicted: equal where models can be compared."""
    import hashlib

    return hashlib.sha256(windows.numpy().tobytes() + str(list(windows.shape)).encode()).hexdigest()
