"""The pages of reports in a browser: from disk, without a network, on wide and narrow windows."""

import base64
import json
import re
from pathlib import Path

import pytest

from flows.reports.publish import write
from tests.flows.pages import Browser, open_browser
from tests.flows.quantize_values import block, reports
from tests.flows.report_values import (
    ablation,
    finetune_reports,
    polynomial_study,
    ternary_reports,
)
from tests.flows.test_html_page import (
    comparison,
    comparison_page,
    evaluation,
    evaluation_page,
)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

KINDS = (
    "quantize", "ternary", "finetune", "comparison", "evaluation", "ablation", "polynomial",
)  # fmt: skip
PICTURES = {"quantize": [1200], "ablation": [1100] * 7, "polynomial": [1210, 1188]}  # widths
WIDTHS = {"wide": 1300, "narrow": 380}
# Width decides what fits and scheme what stands out: two pairs show all four in the suite.
LOOKS = [
    ("wide", "light"),
    ("narrow", "dark"),
    pytest.param("wide", "dark", marks=pytest.mark.long),
    pytest.param("narrow", "light", marks=pytest.mark.long),
]
LEAST_CONTRAST = 4.5  # WCAG 2, level AA, for text of any size
# Perplexities whose order as text is another one.
MODELS = ("float", "w8", "w4", "w2"), (1e6, 3e5, 2e5, 1e5), (9.5, 10.0, 12.0, 100.0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(browser, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    blocks = [block(index, index != 1, 0.25 - 0.02 * index) for index in range(6)]
    written = {
        "quantize": write(reports(folder / "w3", blocks, gate={"max_kl": 0.1}).report()),
        "ternary": write(ternary_reports(folder / "ternary").report()),
        "finetune": write(finetune_reports(folder / "finetuned").report()),
    }
    found = {
        kind: next(path for path in files if path.name == "report.html")
        for kind, files in written.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTWEAK_HOME", str(folder / "home"))
        write(ablation().report())
        found["ablation"] = ablation().folder / "report.html"
        found["polynomial"] = write(polynomial_study().report())[-1]
    found["evaluation"] = folder / "evaluation.html"
    found["evaluation"].write_text(evaluation_page(evaluation(), 1e6), encoding="utf-8")
    found["comparison"] = folder / "comparison.html"
    found["comparison"].write_text(comparison_page(comparison(*MODELS)), encoding="utf-8")
    return found


def show(browser: Browser, page: Path, width: str = "wide", scheme: str = "light") -> None:
    metrics = {"width": WIDTHS[width], "height": 900, "deviceScaleFactor": 1, "mobile": False}
    command = browser.driver.execute_cdp_cmd
    command("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    command("Emulation.setEmulatedMedia", {"features": features})
    browser.driver.get(page.as_uri())


def requests(browser: Browser) -> set[str]:
    """Return every address outside the page that was asked for since the last look."""
    messages = [json.loads(e["message"])["message"] for e in browser.driver.get_log("performance")]
    asked = [
        message["params"]["request"]["url"].partition("#")[0]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    return {address for address in asked if not address.startswith("data:")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_opens_from_disk_and_asks_for_nothing_else(browser, pages, kind):
    browser.driver.get("about:blank")
    requests(browser), browser.driver.get_log("browser")
    show(browser, pages[kind])
    assert browser.run("return document.readyState") == "complete"
    assert requests(browser) == {pages[kind].as_uri()}
    assert browser.driver.get_log("browser") == [], "the page's own rules or scripts failed"
    drawn = "return [...document.querySelectorAll('figure :is(svg, img)')].map(s => s.clientHeight)"
    heights = browser.run(drawn)
    assert heights
    assert min(heights) > 200
    photographs = browser.run(
        "return [...document.querySelectorAll('figure img')].map(i => [i.complete, i.naturalWidth])"
    )
    assert photographs == [[True, width] for width in PICTURES.get(kind, [])]


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_fits_its_window_and_its_words_stand_out(browser, pages, kind, width, scheme):
    show(browser, pages[kind], width, scheme)
    assert browser.run("return document.documentElement.scrollWidth") <= WIDTHS[width]
    assert browser.run("return matchMedia('(prefers-color-scheme: dark)').matches") == (
        scheme == "dark"
    )
    selectors = "h1, .lead, .kind, nav a, .tile dt, .tile .value, td, th, figcaption, pre"
    colours = browser.run(COLOURS_OF % selectors)
    assert len(colours) > 20
    weak = [one for one in colours if contrast(one["ink"], one["ground"]) < LEAST_CONTRAST]
    assert weak == []
    height = min(browser.run("return document.documentElement.scrollHeight"), 12_000)
    whole = {"clip": {"x": 0, "y": 0, "width": WIDTHS[width], "height": height, "scale": 1}}
    picture = browser.driver.execute_cdp_cmd(
        "Page.captureScreenshot", whole | {"captureBeyondViewport": True}
    )
    data = base64.b64decode(picture["data"])
    assert data.startswith(b"\x89PNG")
    (browser.pictures / f"{kind}-{width}-{scheme}.png").write_bytes(data)


COLOURS_OF = """
return [...document.querySelectorAll('%s')].map(element => {
  let ground = element;
  while (ground && getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)')
    ground = ground.parentElement;
  return {text: element.textContent.slice(0, 30), ink: getComputedStyle(element).color,
          ground: getComputedStyle(ground || document.documentElement).backgroundColor};
})"""


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def column(browser: Browser, table: str, number: int) -> list[str]:
    return browser.run(
        f"return [...document.querySelectorAll('{table} tbody tr')]"
        f".map(row => row.cells[{number}].textContent)"
    )


def sorting(browser: Browser, table: str) -> list[str]:
    return browser.run(
        f"return [...document.querySelectorAll('{table} th')].map(h => h.getAttribute('aria-sort'))"
    )


def test_a_click_on_a_head_sorts_numbers_as_numbers(browser, pages):
    show(browser, pages["comparison"])
    table = "#models table"
    heads = browser.run("return [...document.querySelectorAll('#models th')].map(h => h.innerText)")
    place = [head.rstrip("↕↑↓ ") for head in heads].index("perplexity")
    button = f"{table} th:nth-child({place + 1}) button"
    rising = ["9.5000 ± 0.1250", "10.0000 ± 0.1250", "12.0000 ± 0.1250", "100.0000 ± 0.1250"]
    for order, values in (("ascending", rising), ("descending", rising[::-1])):
        browser.driver.find_element("css selector", button).click()
        assert column(browser, table, place) == values
        states = sorting(browser, table)
        assert states[place] == order
        assert states.count("none") == len(states) - 1


def test_the_keyboard_sorts_as_well(browser, pages):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["comparison"])
    table = "#models table"
    first = browser.driver.find_element(By.CSS_SELECTOR, f"{table} th:first-child button")
    browser.run(f"document.querySelector('{table}').parentElement.focus()")
    active = browser.driver.switch_to.active_element
    active.send_keys(Keys.TAB)
    assert browser.driver.switch_to.active_element == first
    first.send_keys(Keys.ENTER)
    assert column(browser, table, 0) == ["float", "w2", "w4", "w8"]
    first.send_keys(Keys.SPACE)
    assert column(browser, table, 0) == ["w8", "w4", "w2", "float"]
    assert sorting(browser, table)[0] == "descending"


def test_cells_without_a_number_stay_last_whichever_way(browser, pages):
    show(browser, pages["comparison"])
    table, bits = "#models table", 3
    button = browser.driver.find_element("css selector", f"{table} th:nth-child(4) button")
    for _ in range(2):
        button.click()
        assert column(browser, table, bits) == ["4.250"] * 3 + [""]


def test_without_scripts_everything_is_there_but_the_sorting(browser, pages):
    command = browser.driver.execute_cdp_cmd
    command("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, pages["quantize"])
        assert browser.run("return document.querySelectorAll('th button').length") == 0
        text = browser.text()
    finally:
        command("Emulation.setScriptExecutionDisabled", {"value": False})
    for shown in ("Tiny.llama_w3", "The gate failed:", "rolled back", "weight error", "5.997"):
        assert shown in text
    show(browser, pages["quantize"])
    assert browser.run("return document.querySelectorAll('th button').length") > 0
