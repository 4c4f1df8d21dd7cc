"""Nothing of a cancelled run reaches the registry, and no alias moves to it."""

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling

from flows.operated import operated
from tasks import cancelling
from tasks import registry as registering


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


def test_a_cancel_during_the_upload_leaves_no_version(registry, monkeypatch):
    upload = registering.complete_logged_model

    def slow_upload(*arguments):
        done = upload(*arguments)
        cancel(Cancelling())
        return done

    monkeypatch.setattr(registering, "complete_logged_model", slow_upload)

    @flow
    @operated
    def cancelled_within():
        registry.register()

    with pytest.raises(CancelledRun):
        cancelled_within()
    assert registry.versions() == []


def test_a_cancel_behind_the_version_moves_no_alias(registry, monkeypatch):
    create = registering._create_version

    def create_and_cancel(*arguments):
        version = create(*arguments)
        cancel(Cancelling())
        return version

    monkeypatch.setattr(registering, "_create_version", create_and_cancel)

    @flow
    @operated
    def cancelled_behind():
        registry.register()

    with pytest.raises(CancelledRun):
        cancelled_behind()
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
