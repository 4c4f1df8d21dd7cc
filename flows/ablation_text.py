"""The tables of an ablation as text."""

from typing import TYPE_CHECKING

from flows.ablation_recipe import AblationRecipe
from normtweak_core.ablation.config import TITLES
from normtweak_core.ablation.reading import Spread

if TYPE_CHECKING:
    from flows.ablation_report import Row

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
    parts = [_lead(recipe, source, base)]
    parts += [study_markdown(rows, readings[study]) for study, rows in tables.items()]
    return "\n".join(parts)


def study_markdown(rows: "list[Row]", reading: str) -> str:
    """Return the table of a study and what it says."""
    title = TITLES[rows[0].study]
    lines = [[title, *HEADER], ["---", *["---:"] * (len(HEADER) - 1), "---"]]
    lines += [_line(row) for row in rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{table}\n*{title}*: {reading}.\n"


def _lead(recipe: AblationRecipe, source: str, base: "Row") -> str:
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
        "its seeds. Seconds: calibration, blocks and final tune, as if a cell shared nothing.\n"
    )


def _line(row: "Row") -> list[str]:
    def of(name: str) -> Spread:
        return row.spread(lambda one: getattr(one, name))

    same = row.comparison.verdict == "base"
    share = row.comparison.ratio
    percent = Spread(100 * share.mean, None if share.deviation is None else 100 * share.deviation)
    agreement = of("agreement")
    agreed = Spread(
        100 * agreement.mean,
        None if agreement.deviation is None else 100 * agreement.deviation,
    )
    bits = row.cells[0].metrics["bits_per_weight"]
    return [
        row.name,
        str(len(row.cells)),
        _spread(of("ratio"), 4),
        "" if same else f"{_spread(percent, 2, signed=True)} %",
        _spread(of("kl"), 4),
        "" if same else _spread(row.comparison.kl, 4, signed=True),
        f"{_spread(agreed, 1)} %",
        f"{bits:.2f}",
        f"{of('seconds').mean:.0f}",
        row.comparison.verdict,
    ]


def _spread(spread: Spread, digits: int, signed: bool = False) -> str:
    mean = f"{spread.mean:{'+' if signed else ''}.{digits}f}"
    return mean if spread.deviation is None else f"{mean} ± {spread.deviation:.{digits}f}"
