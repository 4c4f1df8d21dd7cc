"""A hub on this machine that speaks what huggingface_hub says to the real one when it uploads."""

import base64
import hashlib
import http.server
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import yaml

LARGE = (".safetensors",)  # goes to the storage of large files


@dataclass
class FakeHub:
    """What it has been told, and what it has stored."""

    address: str = ""
    token: str = "hf_may_write"
    repositories: dict[str, str] = field(default_factory=dict)  # visibility by name
    files: dict[str, bytes] = field(default_factory=dict)  # by repository, branch and path
    storage: dict[str, bytes] = field(default_factory=dict)  # large files by hash
    commits: list[str] = field(default_factory=list)
    failing: int | None = None  # status of every answer

    def answer(self, method: str, path: str, body: bytes, token: str | None):
        """Return status and value of an answer."""
        if self.failing:
            return self.failing, {"error": "out of order"}
        if stored := re.fullmatch(r"/storage/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == stored[1]
            self.storage[stored[1]] = body
            return 200, {}
        if token != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            wrong = [] if isinstance(head.get("tags"), list) else [{"message": "tags: a list"}]
            return 400 if wrong else 200, {"errors": wrong, "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/preupload/(\w+)", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [_mode(name) for name in names]}
        if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return 200, {"transfer": "basic", "objects": [*map(self._room, _objects(body))]}
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/(\w+)", path):
            return self._commit(*found.groups(), body)
        return 404, {"error": f"nothing speaks {method} {path}"}

    def _create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": self._url(name)}
        self.repositories[name] = asked.get("visibility", "public")
        return 200, {"url": self._url(name)}

    def _room(self, one):
        if one["oid"] in self.storage:
            return one  # it is there: nothing is to be done
        where = {"href": f"{self.address}/storage/{one['oid']}", "header": {}}
        return one | {"actions": {"upload": where}}

    def _commit(self, repo, branch, body):
        for line in map(json.loads, body.splitlines()):
            told = line["value"]
            if line["key"] == "header":
                self.commits.append(told["summary"])
            elif line["key"] == "file":
                self.files[f"{repo}@{branch}/{told['path']}"] = base64.b64decode(told["content"])
            else:
                self.files[f"{repo}@{branch}/{told['path']}"] = self.storage[told["oid"]]
        oid = f"{len(self.commits):040d}"
        url = f"{self._url(repo)}/commit/{oid}"
        return 200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}

    def _url(self, repo):
        return f"{self.address}/{repo}"


def _mode(name):
    mode = "lfs" if name.endswith(LARGE) else "regular"
    return {"path": name, "uploadMode": mode, "shouldIgnore": False}


def _objects(body):
    return json.loads(body)["objects"]


@contextmanager
def fake_hub():
    """Run one for the duration of the block."""
    hub = FakeHub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path, token = self.path.partition("?")[0], self.headers.get("Authorization")
            status, value = hub.answer(self.command, path, body, token)
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST  # noqa: N815
        do_PUT = do_POST  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
