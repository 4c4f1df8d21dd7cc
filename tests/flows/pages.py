"""`normtweak ui` and `serve` in processes of their own, and a browser that looks at pages."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.command_line import REPOSITORY, clean_environment

REQUIRED = "NORMTWEAK_REQUIRE_BROWSER"
# A first start makes two databases, which takes long on a busy machine.
SECONDS_TO_START = 240
SECONDS_FOR_A_PAGE = 60

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1800",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Command:
    """A running command, its output in a file."""

    def __init__(self, root: Path, output: Path, *arguments: str, **variables: str):
        self.output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=REPOSITORY,
                env=clean_environment(root, **variables),
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def until(self, line: str) -> None:
        end = time.monotonic() + SECONDS_TO_START
        while line not in self.text():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.1)

    def text(self) -> str:
        return self.output.read_text()

    def finish(self) -> str:
        assert self.process.wait(SECONDS_TO_START) == 0, self.text()
        return self.text()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def ask(url: str, body: dict | None = None) -> Any:
    """Return the JSON answer to a GET, or to a POST of a body; no proxy is asked."""
    request = urllib.request.Request(
        url,
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return json.load(answer)


class Browser:
    """Headless Chromium that waits for what a page should show."""

    def __init__(self, driver: Any, pictures: Path):
        self.driver, self.pictures = driver, pictures

    def shows(self, url: str, *texts: str, picture: str = "") -> None:
        """Open a page and return once it shows all the texts."""
        self.driver.get(url)
        self.until(lambda: all(text in self.text() for text in texts), f"{texts} on {url}")
        if picture:
            self.driver.save_screenshot(str(self.pictures / f"{picture}.png"))

    def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + SECONDS_FOR_A_PAGE
        while not condition():
            if time.monotonic() > end:
                self.driver.save_screenshot(str(self.pictures / "failure.png"))
                pytest.fail(f"{what} did not appear; {self.pictures}; found: {self.text()[:3000]}")
            time.sleep(0.2)

    def text(self) -> str:
        return self.run("return document.body ? document.body.innerText : ''")

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def scroll_to(self, selector: str) -> None:
        self.run(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Yield a browser; skip where there is none, unless the environment says it must be there."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        reason = "Debian's chromium and chromium-driver are not installed"
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{reason}, and {REQUIRED}=1 says that they must be")
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(driver, log_output=str(folder / "chromedriver.log"))
    opened = webdriver.Chrome(options=options, service=service)
    pictures = folder / "pictures"
    pictures.mkdir()
    try:
        yield Browser(opened, pictures)
    finally:
        opened.quit()
