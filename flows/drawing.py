"""The stages of each flow as a drawing in Mermaid: `make docs` puts it into docs/architecture.md.

    python -m flows.drawing < docs/architecture.md

What a stage needs is an arrow, as on Prefect's page; a stage with a bar at its side has parts.
"""

import sys

from flows.finetune import FINETUNE
from flows.pipeline.declared import Pipeline
from flows.polynomial import POLYNOMIAL
from flows.quantize import QUANTIZE
from flows.ternary import TERNARY

BEGIN, END = "<!-- stages -->", "<!-- /stages -->"
DRAWN = (QUANTIZE, TERNARY, FINETUNE, POLYNOMIAL)
TEXT = """
An arrow leads from a stage to what is made from it; a doubled frame has a part for each block,
segment, task or cell. A rebuild runs what leads to the export, a cell of an ablation what leads to
its evaluation. In evaluate and compare a stage measures a model alone or beside another.
"""


def drawing(pipeline: Pipeline) -> str:
    """Return the stages of a pipeline and what each needs, as a Mermaid flowchart."""
    numbers = {stage.name: f"s{place}" for place, stage in enumerate(pipeline.stages)}
    lines = ["flowchart LR"]
    for stage in pipeline.stages:
        frame = ("[[", "]]") if stage.has_parts else ("[", "]")
        lines.append(f"    {numbers[stage.name]}{frame[0]}{stage.name}{frame[1]}")
        for name in stage.needs:
            origin = numbers.setdefault(name, name)
            lines.append(f"    {origin} --> {numbers[stage.name]}")
    return "\n".join(lines)


def stages_text() -> str:
    """Return what the page says of all stages, between its two marks."""
    drawn = [f"**{one.name}**\n\n```mermaid\n{drawing(one)}\n```\n" for one in DRAWN]
    return "\n".join([BEGIN, TEXT.strip(), "", *drawn, END])


def with_stages(page: str) -> str:
    """Return a page with the stages as they are declared."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + stages_text() + after


if __name__ == "__main__":
    sys.stdout.write(with_stages(sys.stdin.read()))
