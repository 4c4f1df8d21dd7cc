"""An evaluation as files: every number in a parquet table, and the whole of it as JSON."""

import json
from pathlib import Path

from flows.reports.results import Measured
from tasks.engine.artifacts import write_atomically
from tasks.registry.window_losses import FACTS, MEASURED, WINDOWS, WindowLosses

TABLE = "evaluation.parquet"


def write_evaluation(
    folder: Path, measured: Measured, seed: int, name: str, against: str | None
) -> list[Path]:
    """Write the table and the facts of an evaluation, and return the files.

    Args:
        folder: Where to write.
        measured: The evaluation.
        seed: Of the run.
        name: Of the model.
        against: What it is measured beside; None: nothing.

    Raises:
        TableError: A value is not a number.
    """
    from tasks.tables.evaluation import EVALUATION, evaluation_frame

    tasks = {task: (one.version, one.num_items) for task, one in measured.scores.items()}
    settings = measured.settings() | {"seed": seed}
    frame = evaluation_frame(
        measured.metrics, len(measured.window_nll), tasks, seed, settings["versions"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    EVALUATION.write(folder / TABLE, frame)
    facts = {
        "model": name,
        "against": against,
        MEASURED: measured.measured_on,
        "settings": settings,
        "metrics": dict(sorted(measured.metrics.items())),
        WINDOWS: WindowLosses(measured.window_nll, measured.window_kl).as_json(),
        "items": {task: one.values for task, one in measured.scores.items()},
    }
    write_atomically(folder / FACTS, (json.dumps(facts, indent=1) + "\n").encode())
    return [folder / TABLE, folder / FACTS]
