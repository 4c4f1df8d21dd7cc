"""The stage that allots a width to each linear."""

from pathlib import Path
from typing import Any

from normtweak_core.lazy import lazy
from normtweak_core.widths.report import Allotment, GroupCost
from tasks.engine import events
from tasks.engine.artifacts import publish, publish_json, read_json
from tasks.engine.stage import Found, stage
from tasks.models.work import Work
from tasks.results import FloatType, SensitivityResult, WidthsResult
from tasks.stages.mixed.sensitivity import is_mixed

allotment = lazy("normtweak_core.widths.allotment")
table = lazy("tasks.tables.widths")


def _reads_widths(work: Work, found: Found, part: None) -> dict[str, Any]:
    config = work.recipe.quantization
    return {
        "bits": config.bits.model_dump(mode="json"),
        "group_size": config.group_size,
        "symmetric": config.symmetric,
        "format": work.recipe.export.format,
    }


@stage(
    "widths",
    needs=("float type", "sensitivity"),
    reads=_reads_widths,
    when=is_mixed,
)
def widths(
    key: str, work: Work, float_type: FloatType, sensitivity: list[SensitivityResult]
) -> WidthsResult:
    """Return the widths that cost least within the budget.

    Raises:
        InputError: The average is outside what the narrowest and the widest choice truly cost.
    """
    costs = [GroupCost.model_validate(one) for part in sensitivity for one in read_json(part.costs)]
    form = work.recipe.export.format
    found: Allotment = allotment.allot(costs, work.recipe.quantization, form, float_type.dtype)
    events.record("widths", average=found.average)

    def write_table(path: Path) -> None:
        table.WIDTHS.write(path, table.widths_frame(found))

    return WidthsResult(
        widths=[found.of_block(one.block) for one in sensitivity],
        allotment=publish_json("widths", key, found.model_dump(mode="json")),
        table=publish("widths", key, write_table, "parquet"),
    )


def read_allotment(made: WidthsResult) -> Allotment:
    """Return what was allotted, with what it costs."""
    return Allotment.model_validate(read_json(made.allotment))
