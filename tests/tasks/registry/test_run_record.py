"""What the run of a version tells of its flow, read back through a real registry."""

import time

import pytest
from mlflow import MlflowClient

from tasks.registry.flavor.run_record import RunRecord

STARTED = 1_700_000_000.5
RECORD = RunRecord(
    started=STARTED,
    params={"bits": "2", "model": "reference:llama"},
    series={"drift/rtn": {0: 0.5, 1: 0.75, 2: float("nan")}, "train/loss": {10: 3.0, 20: 2.5}},
    tags={"mlflow.source.name": "normtweak quantize", "mlflow.source.type": "LOCAL"},
    description="What it writes:\n\n| prompt | float |",
)


def run_of(registry):
    (model,) = registry.logged_models()
    return registry.client.get_run(model.source_run_id)


def points(registry, name: str) -> list[tuple[int, float]]:
    history = registry.client.get_metric_history(run_of(registry).info.run_id, name)
    return [(entry.step, entry.value) for entry in history]


def test_a_run_lasts_from_the_start_of_the_flow_and_says_what_it_was(registry):
    before = time.time()
    registry.register(record=RECORD)
    run = run_of(registry)
    assert run.info.start_time == 1000 * STARTED
    assert run.info.end_time >= 1000 * before - 1
    assert run.data.params == RECORD.params
    assert points(registry, "drift/rtn") == [(0, 0.5), (1, 0.75)]  # what is no number is left out
    assert points(registry, "train/loss") == [(10, 3.0), (20, 2.5)]
    assert RECORD.tags.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.note.content"] == RECORD.description
    (version,) = registry.versions()
    assert version.description.endswith(f"\n{RECORD.description}")
    assert "mlflow.pyfunc.load_model" in version.description
    (model,) = registry.logged_models()
    assert model.params == RECORD.params


def test_another_recipe_of_the_same_content_changes_no_param_and_repeats_no_point(registry):
    registry.register(record=RECORD)
    other = RunRecord(params={"bits": "3", "seed": "1"}, series=RECORD.series, tags={"new": "tag"})
    registry.register(record=other, metrics={"kl/mean": 0.75})
    run = run_of(registry)
    assert run.data.params == {"bits": "2", "model": "reference:llama", "seed": "1"}
    assert points(registry, "drift/rtn") == [(0, 0.5), (1, 0.75)]
    assert run.data.tags["new"] == "tag"
    assert run.info.start_time == 1000 * STARTED


def test_a_version_from_before_there_were_records_gets_its_own(registry):
    registry.register()
    assert run_of(registry).data.params == {}
    registry.register(record=RECORD, metrics={"kl/mean": 0.75})
    assert run_of(registry).data.params == RECORD.params
    assert points(registry, "train/loss") == [(10, 3.0), (20, 2.5)]


def test_a_long_record_goes_in_few_calls(registry, monkeypatch):
    calls = []
    real = MlflowClient.log_batch

    def counted(self, *arguments, **options):
        calls.append(options)
        return real(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    losses = {step: 1.0 / step for step in range(1, 1001)}
    record = RunRecord(params={f"p{n}": "x" * 9000 for n in range(150)}, series={"loss": losses})
    registry.register(record=record)
    assert len(calls) == 3  # two of the record, one of the evaluation
    assert points(registry, "loss") == sorted(losses.items())
    assert {len(value) for value in run_of(registry).data.params.values()} == {6000}
    assert len(run_of(registry).data.params) == 150


@pytest.mark.parametrize("at", [1, 2])
def test_a_record_that_was_killed_halfway_is_whole_the_next_time(registry, monkeypatch, at):
    calls = []
    real = MlflowClient.log_batch

    def killed(self, *arguments, **options):
        real(self, *arguments, **options)
        calls.append(options)
        if len(calls) == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.register(record=RECORD)
    registry.register(record=RECORD)
    assert run_of(registry).data.params == RECORD.params
    assert points(registry, "drift/rtn") == [(0, 0.5), (1, 0.75)]
    assert run_of(registry).info.status == "FINISHED"
