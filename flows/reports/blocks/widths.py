"""What is told of mixed widths: what was allotted to each linear, and what each width costs."""

from flows.reports.document import Section, Table, number
from normtweak_core.widths.report import Allotment

WIDTHS_TABLE = "widths.parquet"
WIDTHS_BY_BLOCK = "Widths, block by block"
OF_WIDTHS = (
    "Linears that read the same tensor have one width. A cost is the divergence at the logits on "
    "held-out calibration windows, in nats per token, where the linears have that width and all "
    "else is float; the sum of the costs is the least that the budget allows. Bits per weight are "
    f"those on disk, with scales and zero points. {WIDTHS_TABLE} holds every number."
)


def widths_section(allotment: Allotment) -> Section:
    """Return the table of all groups of linears."""
    widths = sorted(allotment.groups[0].divergence)
    rows = [
        (
            number(group.block, "d"),
            ", ".join(group.linears),
            number(group.width, "d"),
            number(group.stored_bits[group.width] / group.weights),
            *(number(group.divergence[width]) for width in widths),
        )
        for group in allotment.groups
    ]
    heads = ("block", "linears", "bits", "bits per weight", *(f"cost at {w}" for w in widths))
    told = f"{allotment.in_words()}; costs in sum {allotment.divergence:.4g} nats per token."
    return Section(WIDTHS_BY_BLOCK, [told, OF_WIDTHS, Table(heads, rows, "Widths of linears")])
