"""What the proof writes down of a result: facts that another run of the same code repeats."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

# Times, places and ids; names of stages; and what depends on the code's own text or commit.
LEFT_OUT = re.compile(
    r"seconds|peak_rss|flow_run|_dir$|_id$|cached|created_at|commit|^made_with|recipe_sha256"
    r"|environment_sha256|evaluation_sha256|^place\.|^recipe$|versions|^page$|^report$"
)
KEY = re.compile(r"(?<![0-9a-f])[0-9a-f]{12}(?![0-9a-f])")  # in names of folders
LONG = 8
# Their content tells of code, machine or time.
UNREAD = {"made-with.json", "run.json"}


def this_machine() -> dict[str, str]:
    """What decides the last bits of floating point."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return {"processor": model, "instructions": capability, "torch": torch.__version__}


def facts_of(result: dict, work: Path) -> dict[str, Any]:
    """Return the facts of the result of a command.

    Args:
        result: As its ``--result`` holds it.
        work: Folder that all paths lie in; texts name it as WORK.
    """
    facts: dict[str, Any] = {"result": flat(result, work)}
    told = [result[key] for key in ("reports_dir", "results_dir") if key in result]
    told += [Path(file).parent for file in result.get("files", [])[:1]]
    for folder in told:
        facts |= folder_facts(Path(folder), work)
    if result.get("export_dir"):
        facts["manifest"] = manifest_facts(Path(result["export_dir"]), work)
    if registered := result.get("registered"):
        facts["version"] = version_facts(work, registered["name"], registered["version"])
    return facts


def flat(value: Any, work: Path, name: str = "") -> dict[str, Any]:
    """Return the leaves of plain data by their dotted names; of long lists hashes, one a column."""
    if isinstance(value, dict):
        found = {}
        for key, inner in value.items():
            if not LEFT_OUT.search(str(key)):
                found |= flat(inner, work, f"{name}.{key}" if name else str(key))
        return found
    if isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        rows = [flat(one, work) for one in value]
        if len(rows) <= LONG:
            return flat(dict(enumerate(value)), work, name)
        columns = dict.fromkeys(key for row in rows for key in row)
        return {f"{name}.{key}": digest([row.get(key) for row in rows]) for key in columns}
    if isinstance(value, list) and len(value) > LONG:
        return {name: digest([plain(one, work) for one in value])}
    if isinstance(value, list):
        return {name: [plain(one, work) for one in value]}
    return {name: plain(value, work)}


def plain(value: Any, work: Path) -> Any:
    """Return a leaf: a float with ten digits, a path without the folder and keys."""
    if isinstance(value, float):
        return float(f"{value:.10g}")
    if not isinstance(value, str) or str(work) not in value:
        return value
    return KEY.sub("KEY", value.replace(str(work), "WORK"))


def digest(value: Any) -> str:
    """Return a short hash of plain data."""
    text = json.dumps(value, sort_keys=True, default=str)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def folder_facts(folder: Path, work: Path) -> dict[str, Any]:
    """Return names, JSON and tables of a folder of reports."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = [str(file.relative_to(folder)) for file in files]
    return {
        "files": names,
        "json": {
            name: flat(json.loads(file.read_text()), work)
            for name, file in zip(names, files, strict=True)
            if file.suffix == ".json" and name not in UNREAD
        },
        "tables": {
            name: table_facts(file, work)
            for name, file in zip(names, files, strict=True)
            if file.suffix == ".parquet"
        },
    }


def table_facts(file: Path, work: Path) -> dict[str, Any]:
    """Return type and hash of each column of a table, and its number of rows."""
    table = pd.read_parquet(file)
    columns = {"rows": len(table)}
    for name, values in table.items():
        content = [plain(one.tolist() if hasattr(one, "tolist") else one, work) for one in values]
        hashed = "" if LEFT_OUT.search(name) else f" {digest(content)}"
        columns[name] = f"{values.dtype}{hashed}"
    return columns


def manifest_facts(folder: Path, work: Path) -> dict[str, Any]:
    """Return hashes of the files of an export and of each section of its manifest."""
    manifest = json.loads((folder / "normtweak.json").read_text())
    sections = {
        name: digest(flat(section, work, name))
        for name, section in manifest.items()
        if not LEFT_OUT.search(name) and name not in ("about", "files")
    }
    return {"files": manifest["files"], "sections": sections}


def version_facts(work: Path, name: str, version: int) -> dict[str, Any]:
    """Return tags, aliases, metrics and params of a registered version."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{work}/state/mlflow.db")
    found = client.get_model_version(name, str(version))
    run = client.get_run(found.run_id)
    tags = {key: value for key, value in found.tags.items() if not LEFT_OUT.search(key)}
    series = {
        key: [plain(one.value, work) for one in client.get_metric_history(found.run_id, key)]
        for key in run.data.metrics
        if not LEFT_OUT.search(key)
    }
    return {
        "tags": {key: plain(value, work) for key, value in tags.items()},
        "aliases": sorted(found.aliases),
        "metrics": series,
        "params": digest({key: plain(value, work) for key, value in run.data.params.items()}),
    }
