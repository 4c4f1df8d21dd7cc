"""Carrying out the commands of the proof in one process, against one Prefect server."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from flows.cli import main
from tests.proof.cases import REPOSITORY, Case
from tests.tiny_exports import save_tiny_model, tiny_config

OURS = ("NORMTWEAK_", "PREFECT_", "MLFLOW_")
TEXT = "What a small model makes of a text, and of another: 1, 2, 3, and so on. " * 12


@dataclass
class Workshop:
    """A folder with tiny models and a text, and the results of what was carried out there."""

    folder: Path
    results: dict[str, dict] = field(default_factory=dict)

    def run(self, name: str, case: Case) -> tuple[int, dict]:
        """Return exit code and result of a case; the result is empty where there is none."""
        began = time.monotonic()
        slug = name.replace(" ", "-")
        result = self.folder / f"{slug}-result.json"
        arguments = [case.command]
        if case.recipe is not None:
            arguments.append(str(self._recipe(slug, case.recipe)))
        arguments += [self._filled(one) for one in case.arguments]
        with _variables_kept():
            code = main([*arguments, "--result", str(result)])
        self.results[name] = json.loads(result.read_text()) if result.is_file() else {}
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.__stderr__, flush=True)
        return code, self.results[name]

    def _recipe(self, slug: str, recipe: dict | str) -> Path:
        if isinstance(recipe, str):
            return REPOSITORY / "conf" / recipe
        file = self.folder / f"{slug}.yaml"
        file.write_text(self._filled(yaml.safe_dump(recipe)))
        return file

    def _filled(self, text: str) -> str:
        def value(match: re.Match) -> str:
            return self.results[match[1]][match[2]]

        return re.sub(r"\{([^{}.:]+)\.(\w+)\}", value, text)


@contextlib.contextmanager
def workshop(folder: Path) -> Iterator[Workshop]:
    """Write models, a text and items; yield them, as working folder, with a server that answers.

    What the commands print goes to its file log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for seed, family in enumerate(("llama", "opt", "neox")):
        model = folder / family
        save_tiny_model(model, tiny_config(family, max_position_embeddings=256), seed=seed)
        settings = model / "tokenizer_config.json"  # lm-eval begins a text with such a token
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "!"}))
    (folder / "text.txt").write_text(TEXT)
    shutil.copytree(REPOSITORY / "tests" / "data" / "tasks", folder / "tasks")
    with (
        (folder / "log").open("w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        _variables_kept(),
        contextlib.chdir(folder),
    ):
        for name in [name for name in os.environ if name.startswith(OURS)]:
            del os.environ[name]
        # What is logged is not asked for, and would be sent when the server has ended.
        os.environ |= {
            "NORMTWEAK_HOME": str(folder / "state"),
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
        }
        with _server(folder / "prefect") as url:
            os.environ["PREFECT_API_URL"] = url
            yield Workshop(folder)


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    """Yield the address of a Prefect server: one for all commands, not one for each."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    folder.mkdir(exist_ok=True)
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_HOME": str(folder)}
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
        env=os.environ | quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/api"
        _wait_for(f"{url}/health", server)
        yield url
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str, server: subprocess.Popen) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 180
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), direct.open(url, timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the Prefect server must answer at {url} within 180 s; it did not")


@contextlib.contextmanager
def _variables_kept() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
