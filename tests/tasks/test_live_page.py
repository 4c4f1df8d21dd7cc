"""Bars move and tables grow on the page of a run while it works, and never hold it up."""

import json
import time

import httpx
import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.runtime import flow_run

from tasks.engine import live_page
from tasks.engine.live_page import moving, show_bar, show_table
from tasks.engine.progress import Progress
from tests.engine import artifacts_of
from tests.tasks.conftest import wait_until


@pytest.fixture(autouse=True)
def updates_often(engine, monkeypatch):
    monkeypatch.setattr(live_page, "SECONDS_BETWEEN_UPDATES", 0.1)


def on_the_page(run_id: str) -> dict:
    found = artifacts_of(run_id)
    return {key: (one.type, one.data, one.description) for key, one in found.items()}


def test_a_stage_is_a_bar_from_its_start_to_its_end():
    seen = []

    @task
    def stage():
        with Progress(terminal=False).stage("final tune", "steps") as advance:
            wait_until(lambda: on_the_page(flow_run.id))
            seen.append(on_the_page(flow_run.id))
            advance(1, 4, "loss 2.5")
            wait_until(lambda: on_the_page(flow_run.id) != seen[0])
            seen.append(on_the_page(flow_run.id))
            for step in range(2, 5):
                advance(step, 4)

    @flow
    def working():
        with moving(flow_run.id, "Tiny W2"):
            stage()
        return flow_run.id

    after = on_the_page(working())
    key = "tiny-w2-final-tune-progress"
    assert seen[0] == {key: ("progress", 0.0, "final tune")}
    assert seen[1] == {key: ("progress", 25.0, "final tune: 1/4 steps, loss 2.5")}
    assert after == {key: ("progress", 100.0, "final tune: 4/4 steps")}


def test_stages_that_share_a_bar_are_its_parts():
    @flow
    def working():
        with moving(flow_run.id, "tiny"):
            for block in range(3):
                with Progress(False).stage(f"block {block}", "steps", "blocks", (block, 4)) as one:
                    one(1, 2)
        return flow_run.id

    assert on_the_page(working()) == {
        "tiny-blocks-progress": ("progress", pytest.approx(75), "block 2: 1/2 steps")
    }


def test_a_table_grows_in_its_place():
    @flow
    def working():
        with moving(flow_run.id, "tiny"):
            for blocks in range(1, 4):
                rows = [{"block": i, "drift": 0.5} for i in range(blocks)]
                assert show_table("blocks", rows, "Drift")
                wait_until(lambda rows=rows: table_of(flow_run.id) == rows)
        return flow_run.id

    assert len(table_of(working())) == 3


def table_of(run_id: str) -> list:
    shown = on_the_page(run_id).get("tiny-blocks")
    return [] if shown is None else json.loads(shown[1])


def test_thousands_of_steps_are_a_few_requests(monkeypatch):
    monkeypatch.setattr(live_page, "SECONDS_BETWEEN_UPDATES", 0.5)
    requests, update = [], SyncPrefectClient.update_artifact
    monkeypatch.setattr(
        SyncPrefectClient,
        "update_artifact",
        lambda *arguments: requests.append(arguments) or update(*arguments),
    )

    @flow
    def working():
        with moving(flow_run.id, "tiny"):
            began = time.monotonic()
            for step in range(20_000):
                show_bar("training", step + 1, 20_000, "training")
            return flow_run.id, time.monotonic() - began

    run_id, seconds = working()
    assert seconds < 2
    assert len(requests) <= 5
    assert on_the_page(run_id)["tiny-training-progress"][1] == 100.0


def test_a_server_that_does_not_answer_costs_one_warning(monkeypatch):
    heard = []
    monkeypatch.setattr(live_page.log, "warning", lambda text, *rest: heard.append(text))
    monkeypatch.setattr(live_page, "sync_client", lambda: SyncPrefectClient("http://127.0.0.1:9"))

    @flow
    def working():
        with moving(flow_run.id, "tiny"):
            for step in range(1, 4):
                show_bar("training", step, 3, "training")
                time.sleep(0.3)
        return flow_run.id

    assert on_the_page(working()) == {}
    assert heard == ["nothing moves on the page of this run: %r"]


def test_a_server_that_hangs_does_not_hold_up_the_end_of_a_run_for_long(monkeypatch):
    heard = []
    monkeypatch.setattr(live_page.log, "warning", lambda text, *rest: heard.append(text))
    monkeypatch.setattr(live_page, "SECONDS_TO_END", 0.3)

    def hang(*_):
        time.sleep(1.5)
        raise httpx.ReadTimeout("no answer")

    monkeypatch.setattr(SyncPrefectClient, "create_artifact", hang)
    began = time.monotonic()
    with moving("01234567-89ab-cdef-0123-456789abcdef", "tiny"):
        show_bar("training", 1, 2, "training")
    assert time.monotonic() - began < 1.2
    assert heard == ["the page of this run lacks the last of what moved on it"]
    wait_until(lambda: len(heard) == 2)  # before the client is put back


def test_outside_a_run_nothing_is_shown():
    show_bar("training", 1, 2, "training")
    assert not show_table("blocks", [], "Drift")
