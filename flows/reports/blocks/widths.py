"""What is told of mixed widths: what was allotted to each linear, and what each width costs."""

from flows.reports.document import Section, Table, number
from normtweak_core.widths.report import Allotment

WIDTHS_TABLE = "widths.parquet"
WIDTHS_BY_BLOCK = "Widths, block by block"
OF_WIDTHS = (
    "Linears that read the same tensor have one width. The divergence is that from the float "
    "model's logits on held-out calibration windows, in nats per token, where they have that width "
    "and all others the narrowest; in sum it is the least that the budget allows. Bits per weight "
    f"are those on disk, with scales and zero points. {WIDTHS_TABLE} holds every number."
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
    heads = ("block", "linears", "bits", "bits per weight", *(f"divergence at {w}" for w in widths))
    told = (
        f"{allotment.in_words()}. At the narrowest widths {allotment.at_narrowest:.4g} nats per "
        f"token, of which the wider ones save {allotment.saved:.4g} in sum, each by itself."
    )
    return Section(WIDTHS_BY_BLOCK, [told, OF_WIDTHS, Table(heads, rows, "Widths of linears")])
