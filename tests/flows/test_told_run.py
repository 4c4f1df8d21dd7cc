"""What a flow tells the run of its version: its address, curves that are too long, samples."""

import json

import pytest
from prefect.context import refresh_global_settings_context

from flows.pipeline.run_record import prefect_address, samples_lines, thinned, write_samples
from tasks.server.api import is_embedded

RUN = "c2580cf1-b81d-46ee-85c7-341a333d0c73"


@pytest.fixture
def elsewhere(engine_environment, monkeypatch):
    """A flow run on a server that stays."""
    with monkeypatch.context() as patch:
        patch.setenv("PREFECT_API_URL", "http://127.0.0.1:4321/api")
        patch.setenv("PREFECT__FLOW_RUN_ID", RUN)
        refresh_global_settings_context()
        yield
    refresh_global_settings_context()


def test_a_run_has_an_address_where_its_server_stays(elsewhere):
    assert prefect_address() == f"http://127.0.0.1:4321/runs/flow-run/{RUN}"


def test_a_run_whose_server_ends_with_it_has_none(engine):
    assert is_embedded()
    assert prefect_address() is None


def test_a_long_curve_keeps_its_ends_and_a_thousand_points():
    short = {step: float(step) for step in range(1, 1001)}
    assert thinned(short) == short
    long = {step: 1.0 / step for step in range(1, 20_001)}
    kept = thinned(long)
    assert len(kept) == 1000
    assert (min(kept), max(kept)) == (1, 20_000)
    assert all(long[step] == value for step, value in kept.items())
    gaps = {b - a for a, b in zip(sorted(kept), sorted(kept)[1:], strict=False)}
    assert gaps <= {20, 21}


def test_samples_are_a_table_and_their_text_is_no_markup(tmp_path):
    sample = {"prompt": "a | b\n# c", "float_text": "<script>" + "x" * 400, "quantized_text": " "}
    (file,) = write_samples(tmp_path, [sample])
    table = json.loads(file.read_text())
    assert table["columns"] == ["prompt", "float", "quantized"]
    assert table["data"] == [list(sample.values())]
    row = samples_lines([sample])[1].splitlines()[2]
    assert row.startswith("| a \\| b \\# c | \\<script\\>xxx")
    assert row.endswith("x… | none |")
    assert samples_lines([]) == []
