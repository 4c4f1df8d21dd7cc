"""The first stage of every run that makes an export: a few tokens through all that will be done."""

from typing import Any

from normtweak_core.lazy import lazy
from normtweak_core.quantization.config import MixedBits, QuantizationConfig
from tasks.engine.artifacts import Result
from tasks.engine.stage import Found, stage
from tasks.models.job import torch_dtype
from tasks.models.work import Work

export_dry_run = lazy("normtweak_core.dry_run")


class DryRunResult(Result, frozen=True):
    """What was looked at, see `normtweak_core.dry_run`."""

    blocks: list[int]
    uncalled: list[str]


def _reads(work: Work, found: Found, part: None) -> dict[str, Any]:
    job = work.job
    return (
        {
            "model": job.fingerprint.sha256,
            "num_blocks": job.blocks[1],
            "streams": work.streams,
        }
        | ({"rounds": True} if _rounds(work) else {})
        | ({"form": "gptq"} if _format(work) == "gptq" else {})
        | ({"mixed": True} if _mixes(work) else {})
        | job.of_base
    )


def _rounds(work: Work) -> bool:
    config = getattr(work.recipe, "quantization", None)
    return isinstance(config, QuantizationConfig) and config.activation_bits is not None


def _mixes(work: Work) -> bool:
    config = getattr(work.recipe, "quantization", None)
    return isinstance(config, QuantizationConfig) and isinstance(config.bits, MixedBits)


def _format(work: Work) -> str:
    return work.recipe.export.format


@stage("dry run", reads=_reads)
def dry_run(key: str, work: Work) -> DryRunResult:
    """Return what was looked at of a model that can be quantized, exported and verified.

    Raises:
        InputError: The model works in a way that a run cannot follow.
        NonFiniteError: Its logits are not finite, or one of its weights.
    """
    job = work.job
    job.base_weights()  # which says what does not fit
    done = export_dry_run.dry_run(
        job.folder,
        torch_dtype(job.model.dtype),
        job.device,
        job.blocks[1],
        streams=work.streams,
        rounds=_rounds(work),
        form=_format(work),
        mixed=_mixes(work),
    )
    return DryRunResult(blocks=done.blocks, uncalled=done.uncalled)
