"""Whether a run keeps within the limits of its recipe, and with which setting it would."""

from collections.abc import Callable
from typing import Any

from flows.checks.memory import RESERVED
from flows.recipes.base import changed, looked_up
from normtweak_core.errors import InputError
from normtweak_core.memory import hard_limit
from tasks.engine.progress import readable_bytes

# What takes less where it is lower, by stage; {section} is that of the text or of the training.
LOWERED = {
    "calibrate": ("{data}.samples", 8),  # of a given text
    "blocks": ("{data}.samples", 8),
    "evaluate": ("evaluation.perplexity.max_tokens", 8),
    "training": ("{section}.batch", 1),
}
# What does without a stage that cannot take less.
LEFT_OUT = {
    "calibrate": "take calibration.source text",
    "data": "take {data}.source text",
    "final tune": "switch it off by final_tune.enabled: false",
    "evaluate tasks": "score no tasks",
}

Needs = Callable[[Any], dict[str, int]]  # bytes by stage, of a recipe


def check_memory(recipe: Any, section: str, data: str, needs: Needs) -> None:
    """Accept a recipe whose stages need no more memory than it, or the kernel, allows.

    Args:
        recipe: Of quantize, ternary or finetune.
        section: Of its training, where it has one.
        data: Section of its text.
        needs: Returns what each stage needs at its peak.

    Raises:
        InputError: One does; the message names the largest setting that would fit.
    """
    most, hard = recipe.limits.memory, hard_limit()
    limit = "limits.memory"
    if hard is not None and (most is None or hard - RESERVED < most):
        most, limit = hard - RESERVED, "what the limit of the shell (ulimit) leaves a run"
    if most is None:
        return
    for stage, needed in needs(recipe).items():
        if needed <= most:
            continue
        names = {"section": section, "data": data}
        raise InputError(
            f"no stage may need more than {limit}, {readable_bytes(most)}; {stage} needs "
            f"about {readable_bytes(needed)}: {_way_out(recipe, stage, names, most, needs)}"
        )


def check_disk_limit(recipe: Any, disk: dict[str, int]) -> None:
    """Accept a recipe that writes no more than ``limits.disk``.

    Raises:
        InputError: It may write more.
    """
    most, needed = recipe.limits.disk, sum(disk.values())
    if most is not None and needed > most:
        worst = max(disk, key=disk.__getitem__)
        raise InputError(
            f"a run must write no more than limits.disk, {readable_bytes(most)}; this one may "
            f"write {readable_bytes(needed)}, {readable_bytes(disk[worst])} of it {worst}: raise "
            "the limit"
        )


def _way_out(recipe: Any, stage: str, names: dict[str, str], most: int, needs: Needs) -> str:
    writes = looked_up(recipe.model_dump(), f"{names['data']}.source", None) == "generated"
    if stage in LOWERED and not (writes and stage in LEFT_OUT):
        key, least = LOWERED[stage]
        key = key.format(**names)
        fitting = largest(
            least,
            looked_up(recipe.model_dump(), key, None) or 1 << 20,
            lambda value: needs(changed(recipe, {key: value}))[stage] <= most,
        )
        if fitting is not None:
            return f"the largest {key} that fits is {fitting}"
        return f"with {key} {least} it does not fit either, so raise the limit"
    if stage in LEFT_OUT:
        return f"raise the limit, or {LEFT_OUT[stage].format(**names)}"
    return "raise the limit"


def largest(least: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """Return the largest number from ``least`` to ``most`` that fits; None: not even the least.

    What fits one number fits all below it.
    """
    if not fits(least):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least
