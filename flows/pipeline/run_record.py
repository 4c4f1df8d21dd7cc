"""What a flow tells the MLflow run of its version: params, series by step, source, samples."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.runtime import deployment, flow_run
from prefect.utilities.urls import url_for

from flows.pipeline.places import NOTHING
from flows.recipes.kinds import kind_of
from flows.reports.markdown import markdown_table
from normtweak_core.export.verification.verify import read_manifest
from tasks.engine.artifacts import write_atomically
from tasks.engine.provenance import code_commit
from tasks.registry.flavor.run_record import RunRecord
from tasks.server.api import is_embedded

SAMPLES = "samples.json"
COLUMNS = {"prompt": "prompt", "float_text": "float", "quantized_text": "quantized"}
MOST_CHARACTERS = 300  # of a sample on a page: the description of a version holds 5000
MOST_POINTS = 1000  # of a curve: a training has its own run, with every step
FLOW_RUN_URL = "prefect.flow_run_url"


def run_record(
    began: float, recipe: Any, reports: Any, source: str, samples: list[dict[str, str]]
) -> RunRecord:
    """Return what the run of a version tells of the flow that is running.

    Args:
        began: When the run did, on the monotonic clock.
        recipe: Of the flow.
        reports: Know the lineage, the series and the folder of the export.
        source: Name of the float model.
        samples: What the float and the quantized model write.
    """
    return RunRecord(
        started=time.time() - (time.monotonic() - began),
        params=recipe_params(recipe, reports.lineage(), source, reports.export),
        series={name: thinned(points) for name, points in reports.series().items()},
        tags=source_tags() | {"mlflow.loggedArtifacts": _logged_table()},
        description="\n\n".join([*_address_line(), *samples_lines(samples)]),
    )


def recipe_params(
    recipe: Any, lineage: dict[str, str], source: str, export: Path
) -> dict[str, str]:
    """Return every leaf of a recipe, and by short names what versions are told apart by.

    Args:
        recipe: Of any flow.
        lineage: Knows bits, group size and method, wherever the recipe has them from.
        source: Name of the float model.
        export: Folder of the export, which knows what became of ``auto``.
    """
    values = recipe.model_dump(mode="json")
    data, written = kind_of(values).data_of(recipe), read_manifest(export)["export"]
    short = {
        "model": source,
        "bits": lineage["bits"],
        "group_size": lineage.get("group_size"),
        "symmetric": written.get("symmetric"),
        "method": lineage["method"],
        "samples": data.samples,
        "calibration_source": data.source,
        "format": written["format"],
        "dtype": written["dtype"],
    }
    found = dict(_leaves(values)) | {key: one for key, one in short.items() if one is not None}
    return {key: one if isinstance(one, str) else json.dumps(one) for key, one in found.items()}


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def thinned(points: dict[int, float]) -> dict[int, float]:
    """Return at most `MOST_POINTS` of a curve, evenly, the first and the last among them."""
    steps = sorted(points)
    if len(steps) <= MOST_POINTS:
        return points
    last = len(steps) - 1
    kept = {round(place * last / (MOST_POINTS - 1)) for place in range(MOST_POINTS)}
    return {steps[place]: points[steps[place]] for place in sorted(kept)}


def source_tags() -> dict[str, str]:
    """Return what MLflow shows as the source of a run, and where Prefect shows the flow run."""
    commit, scheduled = code_commit(), deployment.id is not None
    flow = f"normtweak {flow_run.flow_name}"
    tags = {
        "mlflow.source.name": f"{flow}, deployment {deployment.name}" if scheduled else flow,
        "mlflow.source.type": "JOB" if scheduled else "LOCAL",
        "prefect.flow_run_id": str(flow_run.id),
    }
    if commit is not None:
        tags["mlflow.source.git.commit"] = commit
    return tags | ({} if (address := prefect_address()) is None else {FLOW_RUN_URL: address})


def prefect_address() -> str | None:
    """Return where Prefect shows the current flow run; None: its server ends with the run."""
    return None if is_embedded() else url_for("flow-run", obj_id=flow_run.id)


def write_samples(folder: Path, samples: list[dict[str, str]]) -> list[Path]:
    """Write the samples as a table that MLflow shows, and return its file."""
    rows = [[one[key] for key in COLUMNS] for one in samples]
    table = {"columns": list(COLUMNS.values()), "data": rows}
    text = json.dumps(table, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / SAMPLES, text.encode())
    return [folder / SAMPLES]


def _logged_table() -> str:
    return json.dumps([{"path": f"reports/{SAMPLES}", "type": "table"}])


def _address_line() -> list[str]:
    address = prefect_address()
    if address is None:
        return [f"Made by the Prefect flow run `{flow_run.id}`, which `normtweak ui` shows."]
    return [f"Made by the Prefect flow run [{flow_run.name}]({address})."]


def samples_lines(samples: list[dict[str, str]]) -> list[str]:
    """Return the samples as a Markdown table with a line above it; none: nothing."""
    if not samples:
        return []
    rows = [[_cell(one[key]) for key in COLUMNS] for one in samples]
    table = markdown_table(tuple(COLUMNS.values()), rows, "lll")
    return ["What it writes, greedily, beside the float model:", "\n".join(table)]


def _cell(text: str) -> str:
    """Return a text for a cell of a Markdown table: a line, with nothing that is markup."""
    line = " ".join(text.split())
    line = line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 1] + "…"
    for mark in "\\`*_<>[]#":
        line = line.replace(mark, f"\\{mark}")
    return line or NOTHING
