"""Nothing of a cancelled run reaches the registry, and no alias moves to it."""

import time

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling

from flows.commands.failures import sigterm_raises
from flows.pipeline.operated import operated
from tasks.registry import versions as registering
from tasks.registry import waiting
from tasks.server import cancelling
from tests.tasks.registry.test_waiting import a_model


@pytest.fixture(autouse=True)
def asks_and_does_not_look(engine, monkeypatch):
    monkeypatch.setattr(cancelling, "SECONDS_BETWEEN_LOOKS", 60)


def cancel(state) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, state, force=True)


@pytest.mark.parametrize("state", [Cancelling(), Cancelled()])
def test_a_cancelled_run_makes_no_version(registry, state):
    @flow
    @operated
    def cancelled_before():
        cancel(state)
        registry.register()

    with pytest.raises(CancelledRun):
        cancelled_before()
    assert registry.client.search_registered_models() == []
    assert registry.client.get_experiment_by_name("normtweak") is None


def register_and_cancel_behind(step: str, registry, monkeypatch) -> None:
    """Register in a run that is cancelled when a step of it is done."""
    inner = getattr(registering, step)

    def and_cancel(*arguments):
        done = inner(*arguments)
        cancel(Cancelling())
        return done

    monkeypatch.setattr(registering, step, and_cancel)

    @flow
    @operated
    def cancelled_within():
        registry.register()

    with pytest.raises(CancelledRun):
        cancelled_within()


def test_a_cancel_during_the_upload_leaves_no_version(registry, monkeypatch):
    register_and_cancel_behind("complete_logged_model", registry, monkeypatch)
    assert registry.versions() == []


def test_a_cancel_behind_the_version_moves_no_alias(registry, monkeypatch):
    register_and_cancel_behind("_create_version", registry, monkeypatch)
    assert len(registry.versions()) == 1
    assert registry.client.get_registered_model(registry.name).aliases == {}


def test_a_cancel_behind_the_aliases_is_too_late(registry):
    @flow
    @operated
    def completed():
        registered = registry.register()
        cancel(Cancelling())
        return registered.aliases

    state = completed(return_state=True)
    assert state.is_completed()
    assert registry.client.get_registered_model(registry.name).aliases == {"candidate": 1}


def test_of_a_run_that_is_cancelled_while_files_are_on_their_way_nothing_waits(
    registry, monkeypatch
):
    def upload(*_):
        cancel(Cancelling())
        time.sleep(60)

    monkeypatch.setattr(cancelling, "SECONDS_BETWEEN_LOOKS", 0.2)
    monkeypatch.setattr(registering, "complete_logged_model", upload)
    model = a_model(registry)

    @flow
    @operated
    def cancelled_within():
        with waiting.unless_cancelled(registry.root, model):
            waiting.register(registry.root, model, registry.uri)

    with sigterm_raises(), pytest.raises(CancelledRun):
        cancelled_within()
    assert waiting.all_waiting(registry.root) == []
    assert not model.place(registry.root).exists()
