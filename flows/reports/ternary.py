"""What is told of a ternary training: its surgery, and what every training tells."""

from dataclasses import dataclass

from flows.recipes.ternary import TernaryRecipe
from flows.reports.document import Section, Table, number, written
from flows.reports.publish import Report
from flows.reports.training import TrainingReports, training_report
from normtweak_core.ternary.schedule import lambdas
from normtweak_core.training.rates import Rates

NORMS = {"rms": "an RMSNorm before every linear", "none": "no extra norm"}
STARTS = {"gptq": "from where GPTQ puts the weights", "absmean": "from the float weights"}
CUT_LOSS = "loss on training text, nats per token"
CUTS = {
    "float": "float model",
    "norms_without_care": "a norm of gain one before every linear",
    "norms": "norms that take over the block norms' gains, at once",
    "step_0": "all of it, at lambda 0",
    "ternary": "rounded to nearest, before any training",
}


@dataclass(frozen=True)
class TernaryReports(TrainingReports):
    """Everything the reports of one ternary training are made of."""

    num_blocks: int
    cuts: dict[str, float]  # loss around the surgery, see `surgery_losses`
    objective: dict[int, float]  # on held-out windows, by step, the start included

    def problems(self) -> list[str]:
        """Return what a person must act on, one sentence each."""
        if self.best > 0:
            return []
        first, last = self.objective[0], self.objective[max(self.objective)]
        return [
            f"training rolled back (objective on held-out windows {first:.4g} -> {last:.4g}): the "
            "export is the ternary model before any training; lower ternary.lr, or train on more "
            "text"
        ]

    def lineage(self) -> dict[str, str]:
        """Return where the result comes from and what became of it; the same for equal runs."""
        return super().lineage() | {"bits": "1.58", "method": "ternary"}

    def report(self) -> Report:
        """Return the training as it is written and shown."""
        recipe, norm = self.recipe, NORMS[self.recipe.ternary.norm]
        rows = [
            {"step": step + 1, "loss": loss, **step_metrics(recipe, self.num_blocks, step)}
            for step, loss in enumerate(self.losses)
        ]
        return training_report(
            self,
            rows,
            section=_surgery_section(self.cuts),
            training=_training(self),
            measured_as="loss of held-out windows, all blocks ternary",
            lambdas=[[row[f"lambda/block_{i}"] for i in range(self.num_blocks)] for row in rows],
            kind="Ternary training",
            lead=f"{recipe.model.source} in ternary weights (1.58 bits), 8-bit activations, "
            f"{norm}.",
            own="ternary",
            models=self.models("ternary"),
        )


def step_metrics(recipe: TernaryRecipe, num_blocks: int, step: int) -> dict[str, float]:
    """Return what the schedules say about a step: learning rate and lambda of every block."""
    config = recipe.ternary
    rates = Rates(config.steps, config.peak, config.lr_second, config.weight_decay)
    values = {f"lambda/block_{i}": lam for i, lam in enumerate(lambdas(config, step, num_blocks))}
    return {"learning_rate": rates.lr_at(step), **values}


def _surgery_section(cuts: dict[str, float]) -> Section:
    rows = [
        (CUTS[name], number(loss), number(loss - cuts["float"], "+.4f"))
        for name, loss in cuts.items()
    ]
    return Section("Surgery", [Table((CUT_LOSS, "loss", "change"), rows, sorts=False)])


def _training(reports: TernaryReports) -> str:
    config = reports.recipe.ternary
    rising = written(config.rising, ".1%")
    schedule = f"{config.schedule}, {config.scope}, over {rising} of training"
    return (
        f"{config.steps} steps of {config.batch} windows, {reports.tokens:,} tokens, "
        f"{STARTS[config.start]}; objective "
        f"{config.objective} in {config.dtype}; lambda "
        f"{schedule if config.rising else '1 from the start'}."
    )
