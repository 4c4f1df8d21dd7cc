"""The evaluation stages on a text: one model alone, once per model, and two of them in pairs."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

from normtweak_core.errors import InputError
from normtweak_core.lazy import lazy
from tasks.engine import events
from tasks.engine.artifacts import publish_json
from tasks.engine.progress import Advance
from tasks.engine.stage import Found, Stage
from tasks.models.measured_on import Text
from tasks.models.subjects import Subject
from tasks.results import Evaluation

divergence = lazy("normtweak_core.evaluate.divergence")
predictions = lazy("normtweak_core.evaluate.predictions")
streaming = lazy("normtweak_core.model.streaming")
known_ids = lazy("normtweak_core.calibration.known_ids")
samples = lazy("normtweak_core.evaluate.samples")

Progress = Callable[[int, int], None]  # done, in all
Model = Callable[[Any, Found], Subject]  # of a run, once what it needs is there


def _read_of(text: Text, *subjects: Subject) -> dict[str, Any]:
    # The same bytes are other documents in another kind of file.
    kind = text.path.suffix.lower()
    return text.inputs() | {"kind": kind, "models": [one.identity for one in subjects]}


def alone(name: str, model: Model, **declared: Any) -> Stage:
    """Return the stage that measures a model by itself; metrics are called ``float``.

    Args:
        name: Of the stage.
        model: Which one.
        declared: What else is known of the stage.
    """

    def body(key: str, work: Any, found: Found, label: str) -> Evaluation:
        return _measure_alone(key, work, label, model(work, found))

    return Stage(
        name,
        body,
        kind="evaluate-alone",
        title="evaluate",
        reads=lambda work, found, part: _read_of(work.text, model(work, found)),
        shared=False,
        **declared,
    )


def pair(name: str, model: Model, beside: Model, **declared: Any) -> Stage:
    """Return the stage that measures a model beside its float model, on the same tokens.

    Args:
        name: Of the stage.
        model: Which one.
        beside: The float model.
        declared: What else is known of the stage.
    """

    def body(key: str, work: Any, found: Found, label: str) -> Evaluation:
        return _measure_pair(key, work, label, model(work, found), beside(work, found))

    return Stage(
        name,
        body,
        kind="evaluate",
        title="evaluate",
        reads=lambda work, found, part: _read_of(
            work.text, model(work, found), beside(work, found)
        ),
        shared=False,
        **declared,
    )


def _measure_alone(key: str, work: Any, label: str, subject: Subject) -> Evaluation:
    """Return how well a model predicts a text.

    Raises:
        InputError: The text is empty, malformed or shorter than one window, or has tokens that the
            model has no embedding for.
        NonFiniteError: A logit is NaN or infinite.
    """
    events.record(label, part="begin")
    windows = work.text.windows(subject)
    with work.progress.stage(label, "windows") as advance:
        model, _ = _walked(subject, windows, work.text, _share(advance, windows, 0, 1))
        result = divergence.perplexity(model, windows)
    details = {"tokens_sha256": tokens_sha256(windows)} | result.model_dump(mode="json")
    return Evaluation(
        metrics=result.metrics("float"), details=publish_json("evaluation", key, details)
    )


def _measure_pair(key: str, work: Any, label: str, subject: Subject, beside: Subject) -> Evaluation:
    """Return a model's metrics beside those of its float model.

    The details hold as well what the two write when they are given the same prompts.
    An export is measured as its readers compute; what float32 would make of the same weights is
    told as well, under names that end in ``_float32``.

    Raises:
        InputError: The tokenizers differ, the text is too short, or the vocabularies differ.
        NonFiniteError: A logit is NaN or infinite.
    """
    events.record(label, part="begin")
    text: Text = work.text
    windows = text.windows(beside)
    require_same_tokens(windows, text.windows(subject), beside.name, subject.name)
    subjects = [beside, subject]  # one after the other: no two of them are in memory
    if subject.kind == "export" and subject.dtype != "float32":
        subjects.append(dataclasses.replace(subject, dtype="float32"))
    with work.progress.stage(label, "windows") as advance:
        (reference, expected), (model, written), *more = (
            _walked(one, windows, text, _share(advance, windows, place, len(subjects)), place < 2)
            for place, one in enumerate(subjects)
        )
        models = [model, *(one for one, _ in more)]
        result, *plain = divergence.compare_each(models, reference, windows)
    metrics = result.metrics()
    for name in ("perplexity/quantized", "kl/mean"):
        metrics |= {f"{name}_float32": one.metrics()[name] for one in plain}
    beginnings = samples.side_by_side(written, expected, beside.tokenizer, windows)
    details = {"tokens_sha256": tokens_sha256(windows)} | result.model_dump(mode="json")
    details["samples"] = [one.model_dump() for one in beginnings]
    return Evaluation(metrics=metrics, details=publish_json("evaluation", key, details))


def _walked(
    subject: Subject, windows: Any, text: Text, progress: Progress, writes: bool = False
) -> tuple[Any, list[str]]:
    """Return what a model predicts for the windows, and what it writes if it is to write.

    Of a model that can be walked block by block no block is in memory afterwards.

    Raises:
        InputError: A token has no embedding.
        NonFiniteError: A weight is NaN or infinite.
    """
    model = subject.streamed()
    whole = not isinstance(model, streaming.StreamedModel)
    tokenizer = subject.tokenizer
    inner = model if whole else model.model
    known_ids.require_known_ids(windows, inner, tokenizer, str(text.path))
    found = model if whole else predictions.walked(model, windows, progress)
    written = samples.written(model, tokenizer, windows) if writes else []
    if not whole:
        model.release()
    return found, written


def _share(advance: Advance, windows: Any, place: int, count: int) -> Progress:
    """Return what takes blocks done of blocks as windows done, the model being one of several."""
    total = len(windows)
    return lambda done, blocks: advance(total * (place * blocks + done) // (count * blocks), total)


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
    return hashlib.sha256(windows.numpy().tobytes() + str(list(windows.shape)).encode()).hexdigest()
