"""The tables of an ablation as text."""

from typing import TYPE_CHECKING

from flows.recipes.ablation import AblationRecipe
from flows.reports.html import Cell
from normtweak_core.ablation.config import TITLES
from normtweak_core.ablation.reading import Spread

if TYPE_CHECKING:
    from flows.reports.ablation import Row

HEADER = [
    "seeds",
    "perplexity, times float",
    "against the base",
    "KL",
    "KL against the base",
    "top-1 agreement",
    "bits/weight",
    "seconds",
    "verdict",
]


def ablation_markdown(
    recipe: AblationRecipe,
    source: str,
    base: "Row",
    tables: "dict[str, list[Row]]",
    readings: dict[str, str],
) -> str:
    """Return what the base is, and per study its table and what it says.

    Args:
        recipe: Base and studies.
        source: Name of the float model.
        base: The base with all its seeds.
        tables: The rows of each study.
        readings: A sentence for each study.
    """
    parts = [ablation_lead(recipe, source, base) + "\n"]
    parts += [study_markdown(rows, readings[study]) for study, rows in tables.items()]
    return "\n".join(parts)


def study_markdown(rows: "list[Row]", reading: str) -> str:
    """Return the table of a study and what it says."""
    title = TITLES[rows[0].study]
    lines = [[title, *HEADER], ["---", *["---:"] * (len(HEADER) - 1), "---"]]
    lines += [[cell.text for cell in study_cells(row)] for row in rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{table}\n*{title}*: {reading}.\n"


def ablation_lead(recipe: AblationRecipe, source: str, base: "Row") -> str:
    """Return what the base is and how the numbers are to be read; arguments as the whole text."""
    metrics = base.cells[0].metrics
    q, tweak = recipe.quantization, recipe.norm_tweak
    group = "one scale a row" if q.group_size is None else f"groups of {q.group_size}"
    calibration = recipe.calibration
    length = "" if calibration.length is None else f" of {calibration.length} tokens"
    stages = [q.method.upper()]
    stages += [f"propagation {q.propagation.alpha:g}"] if q.propagation.alpha else []
    if tweak.enabled:
        stages.append(
            f"norm tweak ({tweak.loss} loss, {tweak.target} target, {tweak.schedule} schedule, lr "
            f"{tweak.lr:g}, {tweak.iterations} {'pass' if tweak.iterations == 1 else 'passes'})"
        )
    stages += [f"final tune of {recipe.final_tune.steps} steps"] * recipe.final_tune.enabled
    ratio = base.spread(lambda one: one.ratio)
    kl = base.spread(lambda one: one.kl)
    seeds = f"{len(base.cells)} seed" + "s" * (len(base.cells) > 1)
    return (
        f"Base: {source}, {q.bits} bits in {group}; {', '.join(stages)}; {calibration.samples} "
        f"windows{length}, source {calibration.source}. Float perplexity "
        f"{metrics['perplexity/float']:.3f} on {metrics['tokens']:.0f} tokens; base over {seeds}: "
        f"{_spread(ratio, 4)} times float, KL {_spread(kl, 4)}. Numbers are means ± standard "
        "deviation over seeds; differences are taken seed by seed, and verdicts are on KL: with "
        "several seeds by a paired t interval of 95 %, with one seed by the range of the base over "
        "its seeds. Seconds: calibration, blocks and final tune, as if a cell shared nothing."
    )


def study_cells(row: "Row") -> list[Cell]:
    """Return the line of a value below its study and `HEADER`, each with what it is sorted by."""

    def of(name: str) -> Spread:
        return row.spread(lambda one: getattr(one, name))

    comparison = row.comparison
    same = comparison.verdict == "base"
    bits = row.cells[0].metrics["bits_per_weight"]
    return [
        Cell(row.name),
        Cell(str(len(row.cells)), len(row.cells)),
        _cell(of("ratio"), 4),
        Cell("") if same else _cell(_hundredfold(comparison.ratio), 2, "+", " %"),
        _cell(of("kl"), 4),
        Cell("") if same else _cell(comparison.kl, 4, "+"),
        _cell(_hundredfold(of("agreement")), 1, unit=" %"),
        Cell(f"{bits:.2f}", bits),
        Cell(f"{of('seconds').mean:.0f}", of("seconds").mean),
        Cell(comparison.verdict),
    ]


def _hundredfold(spread: Spread) -> Spread:
    deviation = None if spread.deviation is None else 100 * spread.deviation
    return Spread(100 * spread.mean, deviation)


def _cell(spread: Spread, digits: int, sign: str = "", unit: str = "") -> Cell:
    return Cell(_spread(spread, digits, sign) + unit, spread.mean)


def _spread(spread: Spread, digits: int, sign: str = "") -> str:
    mean = f"{spread.mean:{sign}.{digits}f}"
    return mean if spread.deviation is None else f"{mean} ± {spread.deviation:.{digits}f}"
