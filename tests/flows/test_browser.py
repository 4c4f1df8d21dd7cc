"""The pages of a real run, as a person sees them in a browser."""

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.engine import with_database
from tests.flows.pages import Browser, Command, ask, free_port, open_browser
from tests.tiny_exports import save_tiny_model, tiny_config

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

NAME = "tiny-pages"


@dataclass(frozen=True)
class Pages:
    """Two servers with one finished run on them."""

    prefect: str
    mlflow: str
    result: dict

    def run_page(self) -> str:
        return f"{self.prefect}/v2/runs/flow-run/{self.result['flow_run_id']}"

    def artifact(self, report: str) -> str:
        chosen = {
            "key": {"any_": [f"{NAME}-{report}"]},
            "flow_run_id": {"any_": [self.result["flow_run_id"]]},
        }
        (found,) = ask(f"{self.prefect}/api/artifacts/filter", {"artifacts": chosen})
        return f"artifacts/artifact/{found['id']}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(browser, tmp_path_factory, migrated_database):
    folder = tmp_path_factory.mktemp("pages")
    ports = free_port(), free_port()
    root = with_database(folder / "state", migrated_database)
    ui = Command(
        root, folder / "ui.txt", "flows.cli", "ui", "--prefect-port", str(ports[0]),
        "--mlflow-port", str(ports[1]),
    )  # fmt: skip
    try:
        recipe = write_recipe(folder)
        ui.until("Registered versions")
        address = f"http://127.0.0.1:{ports[0]}"
        assert address in ui.text()
        result = folder / "result.json"
        # It finds the server by itself.
        run = Command(
            root, folder / "run.txt", "flows.cli", "quantize", str(recipe), "--result", str(result)
        )
        api = {"PREFECT_API_URL": f"{address}/api", "PREFECT_HOME": str(root / "prefect")}
        for command in (("work-pool", "create", "--type", "process", "normtweak"), DEPLOY):
            Command(root, folder / "prefect.txt", "prefect", *command, **api).finish()
        run.finish()
        yield Pages(address, f"http://127.0.0.1:{ports[1]}", json.loads(result.read_text()))
    finally:
        ui.stop()
    assert ui.process.returncode == 0


DEPLOY = ("--no-prompt", "deploy", "--all")


def write_recipe(folder: Path) -> Path:
    save_tiny_model(folder / "model", tiny_config("llama"))
    (folder / "text.txt").write_text("Pages of a run, seen in a browser. " * 12)
    path = folder / "recipe.yaml"
    values = {
        "name": NAME,
        "model": {"source": str(folder / "model")},
        "calibration": {"source": "random", "samples": 8, "length": 32},
        "quantization": {"bits": 4, "group_size": 32, "mse_grid": False},
        "final_tune": {"steps": 2},
        "evaluation": {"perplexity": {"path": str(folder / "text.txt")}},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_run_shows_its_state_and_every_block_task(browser: Browser, pages: Pages):
    browser.shows(f"{pages.run_page()}?tab=Logs", NAME, "Completed", "block 1", picture="run")
    tasks = ("block 0", "block 1", "calibrate", "final tune", "export", "verify", "register")
    browser.shows(f"{pages.run_page()}?tab=TaskRuns", *tasks, "Completed", picture="tasks")


def test_the_page_draws_an_arrow_to_each_stage_from_what_it_is_made_from(pages: Pages):
    address = f"{pages.prefect}/api/flow_runs/{pages.result['flow_run_id']}/graph-v2"
    with urllib.request.urlopen(address, timeout=20) as answer:
        nodes = dict(json.loads(answer.read())["nodes"])
    labels = {place: node["label"] for place, node in nodes.items()}
    drawn = {
        (labels[parent["id"]], node["label"])
        for node in nodes.values()
        for parent in node["parents"]
    }
    last = ("rtn 1", "verify", "size check", "evaluate float", "evaluate")
    assert drawn == {
        ("dry run", "calibrate"),
        ("dry run", "evaluate float"),
        ("calibrate", "float type"),
        ("calibrate", "block 0"),
        ("float type", "block 0"),
        ("block 0", "block 1"),
        ("calibrate", "final tune"),
        ("float type", "final tune"),
        ("block 1", "final tune"),
        ("calibrate", "export"),
        ("float type", "export"),
        ("block 1", "export"),
        ("final tune", "export"),
        ("calibrate", "rtn 0"),
        ("float type", "rtn 0"),
        ("rtn 0", "rtn 1"),
        ("export", "verify"),
        ("export", "size check"),
        ("export", "evaluate"),
        *((one, "register") for one in last),
    }


@pytest.mark.parametrize("version", ["v2", "v1"])
def test_the_link_of_a_run_opens_its_page(browser: Browser, pages: Pages, version: str):
    from selenium.webdriver.common.by import By

    browser.driver.get(f"{pages.prefect}/v2/")  # the cookie belongs to this address
    browser.driver.add_cookie({"name": "prefect_ui_version", "value": version})
    place = f"{pages.prefect}/{'v2/' if version == 'v2' else ''}{pages.artifact('page')}"
    browser.shows(place, "Open the report", picture=f"link-{version}")
    before = set(browser.driver.window_handles)
    browser.driver.find_element(By.LINK_TEXT, "Open the report").click()
    # The one page opens the report in place of itself, the other in a tab of its own.
    opened = set(browser.driver.window_handles) - before
    if opened:
        browser.driver.switch_to.window(opened.pop())
    numbers = f"{pages.result['metrics']['perplexity/quantized']:.3f}"
    browser.until(
        lambda: all(text in browser.text() for text in ("Quantization", NAME, numbers)), "the page"
    )
    assert browser.driver.current_url.startswith(f"{pages.prefect}/normtweak/exports/")
    browser.driver.save_screenshot(str(browser.pictures / f"opened-{version}.png"))
    buttons = browser.run("return document.querySelectorAll('th button').length")
    assert buttons > 0, "the rules of the server keep the page's script from running"
    if set(browser.driver.window_handles) != before:
        browser.driver.close()
        browser.driver.switch_to.window(before.pop())
    browser.driver.delete_cookie("prefect_ui_version")


def test_the_run_leads_to_its_reports(browser: Browser, pages: Pages):
    keys = [f"{NAME}-{report}" for report in ("blocks", "calibration", "summary", "page")]
    browser.shows(f"{pages.run_page()}?tab=Artifacts", *keys, picture="artifacts")


def test_the_block_table_has_a_row_a_block(browser: Browser, pages: Pages):
    titles = ("block", "drift RTN", "drift", "tweaked", "norm tweak", "output error")
    url = f"{pages.prefect}/v2/{pages.artifact('blocks')}"
    browser.shows(url, *titles, "Drift is |x_q - x_f| / |x_f|", picture="blocks")
    rows = browser.run("return [...document.querySelectorAll('tbody tr')].map(r => r.innerText)")
    assert len(rows) == 2
    after = pages.result["blocks"][1]["error_after"]
    assert f"{after:.4g}" in rows[1]


def test_the_calibration_report_tells_its_verdict(browser: Browser, pages: Pages):
    url = f"{pages.prefect}/v2/{pages.artifact('calibration')}"
    texts = ("8 windows of 32 tokens (256 tokens)", "Verdict:", "Distinct 4-grams in a window")
    browser.shows(url, *texts, picture="calibration")


@pytest.mark.parametrize("version", ["v2", "v1"])
def test_the_summary_shows_the_result_and_draws_the_plot(
    browser: Browser, pages: Pages, version: str
):
    metrics = pages.result["metrics"]
    browser.driver.get(f"{pages.prefect}/v2/")  # the cookie belongs to this address
    browser.driver.add_cookie({"name": "prefect_ui_version", "value": version})
    page = f"{pages.prefect}/{'v2/' if version == 'v2' else ''}{pages.artifact('summary')}"
    numbers = [
        f"{metrics[f'perplexity/{kind}']:.3f} ± {metrics[f'perplexity/{kind}_stderr']:.3f}"
        for kind in ("float", "quantized", "ratio")
    ]
    browser.shows(page, NAME, "in 4 bits by GPTQ", *numbers, "bits per weight", "norm tweak")
    picture = 'img[alt^="|x_q - x_f| / |x_f| behind each block"]'
    drawn = f"const image = document.querySelector('{picture}'); return image && image.naturalWidth"
    browser.until(lambda: browser.run(drawn) == 840, "the drift plot, 840 pixels wide")
    assert browser.run(f"return document.querySelector('{picture}').clientWidth") > 400
    browser.scroll_to(picture)
    browser.driver.save_screenshot(str(browser.pictures / f"summary-{version}.png"))
    browser.driver.delete_cookie("prefect_ui_version")


def test_the_deployment_has_a_schedule_and_a_form_of_the_recipe(browser: Browser, pages: Pages):
    (deployment,) = ask(f"{pages.prefect}/api/deployments/filter", {})
    url = f"{pages.prefect}/v2/deployments/deployment/{deployment['id']}"
    browser.shows(url, "nightly", "At 02:30 AM", "Concurrency Limit", picture="deployment")
    texts = ("Name of the registered model.", "Number of windows.", "Width of one code;")
    browser.shows(f"{url}/run", *texts, picture="form")
    fields = "return [...document.querySelectorAll('input, textarea')].map(field => field.value)"
    browser.until(lambda: "quickstart-llama-w2g64" in browser.run(fields), "the recipe's name")
    assert {"reference:llama", "64", "256", "200", "32768"} <= set(browser.run(fields))


def test_the_version_and_its_metrics_are_on_the_registry_pages(browser: Browser, pages: Pages):
    metrics, version = pages.result["metrics"], pages.result["registered"]["version"]
    api = f"{pages.mlflow}/api/2.0/mlflow"
    registered = ask(f"{api}/model-versions/get?name={NAME}&version={version}")["model_version"]
    tags = {tag["key"]: tag["value"] for tag in registered["tags"]}
    assert tags["prefect.flow_run_url"].endswith(f"/runs/flow-run/{pages.result['flow_run_id']}")
    texts = (
        f"Version {version}",
        "candidate",
        "perplexity/quantized",
        pages.result["export_sha256"],
        f'mlflow.pyfunc.load_model("models:/{NAME}/{version}")',
        "or the messages of a chat where",  # not broken where our own line ends
    )
    browser.shows(f"{pages.mlflow}/#/models", "Registered Models", NAME, picture="models")
    browser.shows(f"{pages.mlflow}/#/models/{NAME}/versions/{version}", *texts, picture="version")
    experiment = ask(f"{api}/experiments/get-by-name?experiment_name=normtweak")["experiment"]
    model = f"experiments/{experiment['experiment_id']}/models/{tags['logged_model_id']}"
    values = (str(metrics["perplexity/quantized"]), str(metrics["kl/mean"]), "top1_agreement")
    browser.shows(f"{pages.mlflow}/#/{model}", "Metrics", *values, picture="metrics")
    browser.shows(f"{pages.mlflow}/#/{model}/artifacts", "reports", "MLmodel", picture="files")
