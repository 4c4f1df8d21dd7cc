"""A version that a real run has registered, and others that tell something else of its export."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.flows.in_process import run_command

NAME = "tiny-rebuilt"
URI = f"models:/{NAME}/1"
RECIPE = {
    "name": NAME,
    "model": {"source": "model"},
    "calibration": {"source": "text", "path": "./text.txt", "samples": 8, "length": 16},
    "quantization": {"bits": 2, "group_size": 32},
    "final_tune": {"steps": 4},
    "evaluation": {"perplexity": {"path": "text.txt", "max_tokens": 64}},
}


@dataclass(frozen=True)
class Made:
    """A version made by a real run, and where to register others that say something else."""

    root: Path
    folder: Path
    result: dict

    @property
    def client(self):
        from mlflow import MlflowClient

        uri = os.environ["MLFLOW_TRACKING_URI"]
        return MlflowClient(uri, uri)

    def altered(self, name: str, tags: dict | None = None, **files: bytes | None) -> str:
        """Register the export as another model whose record differs; return its address.

        Args:
            name: Of the model.
            tags: Tags to change; None takes one away.
            files: New contents of reports, by name with `_` for `.` and `-`; None takes one away.
        """
        from tasks.registry.versions import register_export

        version = self.client.get_model_version(NAME, "1")
        reports = self.folder / name
        self.client.download_artifacts(version.run_id, "reports", str(new_folder(reports)))
        kept = []
        for report in sorted((reports / "reports").iterdir()):
            content = files.get(report.name.replace(".", "_").replace("-", "_"), b"")
            if content is None:
                continue
            if content:
                report.write_bytes(content)
            kept.append(report)
        told = dict(version.tags) | (tags or {})
        told = {key: value for key, value in told.items() if value is not None}
        registered = register_export(
            Path(self.result["export_dir"]), name, self.result["export_sha256"],
            self.result["metrics"], told, kept, "candidate", os.environ["MLFLOW_TRACKING_URI"],
            self.root / "mlartifacts", self.root / "locks",
        )  # fmt: skip
        for tag in (tag for tag, value in (tags or {}).items() if value is None):
            if tag in self.client.get_model_version(name, "1").tags:
                self.client.delete_model_version_tag(name, "1", tag)
        return registered.model_uri

    def report(self, name: str) -> str:
        return (Path(self.result["reports_dir"]) / name).read_text()

    def altered_recipe(self, name: str, tags: dict | None = None, **sections) -> str:
        """Register the export as if another recipe had led to it."""
        values = yaml.safe_load(self.report("recipe.yaml"))
        for key, value in sections.items():
            values[key] = values[key] | value if isinstance(value, dict) else value
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        text = yaml.safe_dump(values).encode()
        return self.altered(name, {"recipe_sha256": digest} | (tags or {}), recipe_yaml=text)


def new_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def answer(made: Made, capsys, uri: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Return exit code, standard output and the last line of standard error of a rebuild."""
    capsys.readouterr()
    code = run_command(made.root, "rebuild", uri, *arguments, **variables)
    said = capsys.readouterr()
    return code, said.out, said.err.strip().splitlines()[-1] if said.err.strip() else ""


def refused(made: Made, capsys, uri: str, *arguments: str) -> str:
    """Return why a version is not rebuilt; nothing was computed and nothing left behind."""
    before = sorted((made.root / "rebuilds").glob("*"))
    code, shown, reason = answer(made, capsys, uri, *arguments)
    assert (code, shown) == (2, "")
    assert sorted((made.root / "rebuilds").glob("*")) == before
    return reason.removeprefix("normtweak: ").removeprefix("error: ")


def registry_state(client) -> list:
    """Everything the registry says that a rebuild must not change."""
    (experiment,) = client.search_experiments(filter_string="name = 'normtweak'")
    models = client.search_registered_models()
    return [
        sorted((m.name, sorted(m.aliases.items())) for m in models),
        sorted(
            (v.name, v.version, v.run_id, v.source, sorted(v.tags.items()))
            for v in client.search_model_versions()
        ),
        sorted(run.info.run_id for run in client.search_runs([experiment.experiment_id])),
        sorted(m.model_id for m in client.search_logged_models([experiment.experiment_id])),
        len(client.search_experiments()),
    ]
