"""A run is called as a person has typed; others by what they do, and reruns are told apart."""

from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from pydantic import BaseModel

from flows.pipeline.run_name import run_name


class Named(BaseModel):
    name: str = "tiny-w2"


@pytest.fixture
def named_flow():
    @flow(name="named", flow_run_name=run_name("{recipe.name}"))
    def body(recipe: Named) -> str:
        from prefect.runtime import flow_run

        return flow_run.name

    return body


def started(body: Any, client: Any, **how: Any) -> str:
    """Return the name of a run that was made by the deployment of a flow."""
    flow_id = client.create_flow(body)
    deployment = client.create_deployment(flow_id, name="named")
    made = client.create_flow_run_from_deployment(
        deployment, parameters={"recipe": {"name": "tiny-w2"}}, **how
    )
    run_flow(body, flow_run=made, parameters={"recipe": Named()})
    return client.read_flow_run(made.id).name


def test_reruns_of_a_command_are_told_apart(named_flow, engine, monkeypatch):
    times = iter(["11-28 20:31:05", "11-29 07:00:00"])
    monkeypatch.setattr("flows.pipeline.run_name.time.strftime", lambda form: next(times))
    assert [named_flow(Named()), named_flow(Named())] == [
        "tiny-w2 11-28 20:31:05",
        "tiny-w2 11-29 07:00:00",
    ]


def test_the_name_typed_into_the_form_is_kept(named_flow, engine):
    with get_client(sync_client=True) as client:
        assert started(named_flow, client, name="before the holidays") == "before the holidays"
