"""What happens to reports, metrics and tags when a run says something new about a known payload."""

import tempfile
from pathlib import Path

import pytest
from mlflow import MlflowClient


class KilledError(Exception):
    """Stands for the end of the process."""


def stored_reports(registry) -> set[str]:
    """Return what the logged model and its run hold as drift.md."""
    (model,) = registry.logged_models()
    stored = Path(model.artifact_location.removeprefix("file://")) / "reports" / "drift.md"
    return {stored.read_text(), report_of_the_run(registry, model.source_run_id)}


def report_of_the_run(registry, run_id: str) -> str:
    """Return what a run holds as drift.md."""
    with tempfile.TemporaryDirectory() as folder:  # MLflow would make one and leave it
        return Path(
            registry.client.download_artifacts(run_id, "reports/drift.md", folder)
        ).read_text()


def tags_of(registry, *keys: str) -> list[tuple[str | None, str | None]]:
    """Return tags as the version and as the logged model have them."""
    (model,) = registry.logged_models()
    version = registry.client.get_model_version("tiny-w4", "1")
    return [(version.tags.get(key), model.tags.get(key)) for key in keys]


def another_report(registry) -> list[Path]:
    (registry.root / "other").mkdir(exist_ok=True)
    (registry.root / "other" / "drift.md").write_text("# drift, measured anew")
    return [registry.root / "other" / "drift.md"]


def test_another_recipe_of_the_same_content_leaves_its_own_reports_and_tags(registry):
    tags = registry.arguments()["tags"] | {"recipe_sha256": "a", "prefect.flow_run_id": "1"}
    registry.register(tags=tags)
    other = tags | {"recipe_sha256": "b", "prefect.flow_run_id": "2"}
    again = registry.register(tags=other, reports=another_report(registry))
    assert (again.version, again.created) == (1, False)
    assert stored_reports(registry) == {"# drift, measured anew"}
    assert tags_of(registry, "recipe_sha256", "prefect.flow_run_id", "bits") == [
        ("b", "b"),
        ("2", "2"),
        ("4", "4"),
    ]


def test_an_equal_run_later_changes_nothing(registry):
    tags = registry.arguments()["tags"]
    registry.register(tags=tags | {"prefect.flow_run_id": "1"})
    (before,) = registry.logged_models()
    registry.register(tags=tags | {"prefect.flow_run_id": "2"})
    (after,) = registry.logged_models()
    assert after.last_updated_timestamp == before.last_updated_timestamp
    assert tags_of(registry, "prefect.flow_run_id") == [("1", "1")]


@pytest.mark.parametrize("end", ["the new one", "the old one"])
@pytest.mark.parametrize(
    "step",
    [
        "log_model_artifacts",
        "log_artifacts",
        "log_batch",
        "set_logged_model_tags",
        "delete_model_version_tag",
        "set_model_version_tag",
    ],
)
def test_an_evaluation_that_was_killed_halfway_is_stored_whole_next_time(
    registry, monkeypatch, step, end
):
    registry.register()
    new = {
        "metrics": dict(registry.metrics) | {"kl/mean": 0.5, "perplexity/quantized": 11.0},
        "reports": another_report(registry),
    }
    real = getattr(MlflowClient, step)

    def killed(*arguments, **options):
        real(*arguments, **options)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, killed)
        with pytest.raises(KilledError):
            registry.register(**new)

    again = registry.register(**new if end == "the new one" else {})
    assert (again.version, again.created) == (1, False)
    metrics = new["metrics"] if end == "the new one" else dict(registry.metrics)
    report = "# drift, measured anew" if end == "the new one" else "# drift"
    assert stored_reports(registry) == {report}
    (model,) = registry.logged_models()
    assert {m.key: m.value for m in model.metrics} == metrics
    ((of_version, of_model),) = tags_of(registry, "evaluation_sha256")
    assert of_version == of_model
    version_tags = registry.client.get_model_version("tiny-w4", "1").tags
    assert version_tags["kl/mean"] == str(metrics["kl/mean"])
    assert version_tags["perplexity/quantized"] == str(metrics["perplexity/quantized"])


def test_a_new_evaluation_of_the_same_content_updates_its_metrics_and_reports(registry):
    registry.register()
    slower = dict(registry.metrics) | {"seconds": 4.0}
    registry.register(metrics=slower)
    (model,) = registry.logged_models()
    assert {m.key: m.value for m in model.metrics}["seconds"] == 3.0  # no headline, no update

    (registry.root / "new").mkdir()
    report = registry.root / "new" / "drift.md"
    report.write_text("# another drift")
    registry.register(metrics=slower | {"perplexity/quantized": 11.0}, reports=[report])
    (model,) = registry.logged_models()
    assert {m.key: m.value for m in model.metrics}["perplexity/quantized"] == 11.0
    assert stored_reports(registry) == {"# another drift"}
    tags = registry.client.get_model_version("tiny-w4", "1").tags
    assert tags["perplexity/quantized"] == "11.0"
    assert len(registry.versions()) == 1
