import asyncio
import importlib
import json
from pathlib import Path

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from flows.deploy import find_deployment_file, read_deployments
from flows.recipes.kinds import KINDS
from flows.recipes.quantize import Recipe
from flows.serving import served_deployment
from normtweak_core.errors import InputError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def changed(tmp_path):
    """A function that writes prefect.yaml with changes to its first deployment."""

    def write(**changes) -> Path:
        data = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
        data["deployments"][0] |= changes
        path = tmp_path / "prefect.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return write


def test_the_nightly_deployment_runs_the_quickstart_recipe():
    (nightly,) = read_deployments(REPOSITORY / "prefect.yaml")
    assert nightly.recipe == Recipe.load(REPOSITORY / "conf" / "quickstart.yaml")
    assert nightly.title == "quantize/nightly (30 2 * * * UTC)"


def test_what_is_served_is_what_the_file_says():
    (nightly,) = read_deployments(REPOSITORY / "prefect.yaml")
    served = asyncio.run(served_deployment(nightly))
    (schedule,) = served.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("30 2 * * *", "UTC")
    assert schedule.slug == "nightly"
    assert schedule.active
    assert served.concurrency_limit == 1
    assert served.concurrency_options.collision_strategy.value == "ENQUEUE"
    assert served.entrypoint == "flows.quantize.quantize"
    assert served.parameters["recipe"] == nightly.recipe.model_dump(mode="json")
    assert served.description == nightly.description
    assert not served.paused


def test_the_form_of_the_page_knows_ranges_choices_and_descriptions():
    (nightly,) = read_deployments(REPOSITORY / "prefect.yaml")
    schema = asyncio.run(served_deployment(nightly))._parameter_openapi_schema
    definitions = schema.definitions
    assert definitions["QuantizationConfig"]["properties"]["bits"]["oneOf"][0]["enum"] == [
        2,
        3,
        4,
        8,
    ]
    samples = definitions["ImageCalibrationConfig"]["properties"]["samples"]
    assert (samples["minimum"], samples["description"]) == (8, "Number of windows.")
    assert schema.required == ["recipe"]


FORMATS = {
    "quantize": ["auto", "compressed-tensors", "gptq", "gguf"],
    "ternary": ["auto", "bitnet", "gguf"],
    "finetune": ["auto", "compressed-tensors", "gptq", "gguf"],
}
LEAST = {"quantize": {}, "ternary": {"ternary": {}}, "finetune": {"model": {"source": "export"}}}
UNSEEN = ("must stay null", "not built", "Not built", ".md", "flows/", "conf/")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_form_offers_what_its_flow_accepts_and_nothing_else(kind):
    flow = getattr(importlib.import_module(f"flows.{kind.name}"), kind.name)
    schema = parameter_schema(flow).model_dump()
    sections = schema["definitions"]
    (export,) = (one for name, one in sections.items() if name.endswith("Export"))
    assert export["properties"]["format"]["enum"] == FORMATS[kind.name]
    for form in FORMATS[kind.name]:
        values = {"name": "a", **LEAST[kind.name], "export": {"format": form}}
        recipe = kind.recipe.parse(values)
        # What the page and the run record keep is what Prefect itself takes again.
        kept = {"recipe": recipe.model_dump(mode="json")}
        assert validate(kept, schema, raise_on_error=False) == []
        assert flow.validate_parameters(kept)["recipe"] == recipe
    shown = {name for one in sections.values() for name in one.get("properties", {})}
    assert shown.isdisjoint({"ternary", "finetune"} - {kind.name})
    assert ("activation_bits" in shown) == (kind.name != "finetune")
    assert not [words for words in UNSEEN if words in json.dumps(schema)]


def test_the_file_of_the_working_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_deployment_file() == REPOSITORY / "prefect.yaml"
    (tmp_path / "prefect.yaml").write_text("deployments: []\n")
    assert find_deployment_file() == tmp_path / "prefect.yaml"


def test_a_limit_given_as_a_number_and_none_at_all_are_read(changed):
    (limited,) = read_deployments(changed(concurrency_limit=2))
    assert asyncio.run(served_deployment(limited)).concurrency_limit == 2
    (unlimited,) = read_deployments(changed(concurrency_limit=None, schedules=None))
    served = asyncio.run(served_deployment(unlimited))
    assert (served.concurrency_limit, served.schedules) == (None, [])
    assert unlimited.title == "quantize/nightly (no schedule)"


def test_every_flow_that_registers_can_be_deployed(changed):
    recipe = yaml.safe_load((REPOSITORY / "conf" / "ternary-quickstart.yaml").read_text())
    ternary = {"entrypoint": "flows/ternary.py:ternary", "parameters": {"recipe": recipe}}
    (spec,) = read_deployments(changed(schedules=None, **ternary))
    assert spec.title == "ternary/nightly (no schedule)"
    served = asyncio.run(served_deployment(spec))
    assert served.entrypoint == "flows.ternary.ternary"
    assert served.parameters["recipe"]["ternary"]["steps"] == 150
    definitions = served._parameter_openapi_schema.definitions
    steps = definitions["TernaryConfig"]["properties"]["steps"]
    assert (steps["minimum"], steps["description"]) == (1, "Optimizer steps.")
    recipe = {"name": "x", "model": {"source": "an-export"}, "finetune": {"steps": 7}}
    finetune = {"entrypoint": "flows/finetune.py:finetune", "parameters": {"recipe": recipe}}
    (spec,) = read_deployments(changed(**finetune))
    served = asyncio.run(served_deployment(spec))
    assert served.entrypoint == "flows.finetune.finetune"
    assert served.parameters["recipe"]["finetune"]["steps"] == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entrypoint": "flows/other.py:run"}, r"entrypoint flows/quantize.py:quantize, flows/ter"),
        ({"schedules": [{"interval": 60}]}, r"a schedule of nightly must have cron.*interval"),
        ({"schedules": [{"cron": "0 1 * * *", "zone": "UTC"}]}, r"may have timezone.*found.*zone"),
        ({"parameters": {"recipe": {"name": "x", "sed": 1}}}, r"sed is not a recipe key"),
        ({"parameters": {}}, r"name is required"),
    ],
)
def test_a_deployment_that_is_not_valid_is_refused(changed, changes, message):
    with pytest.raises(InputError, match=message):
        read_deployments(changed(**changes))


def test_a_file_without_deployments_or_that_is_not_yaml_is_refused(tmp_path):
    path = tmp_path / "prefect.yaml"
    path.write_text("deployments: []\n")
    with pytest.raises(InputError, match="must list deployments; found none"):
        read_deployments(path)
    path.write_text("{[")
    with pytest.raises(InputError, match="must be YAML"):
        read_deployments(path)
