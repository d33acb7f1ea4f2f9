"""A model hub on this machine: the part of its API that `huggingface_hub` uses to upload, over real HTTP."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

USER = "somebody"
LARGE_BYTES = 4096
"""Files from this size, and all with weights, go through large file storage, as on the hub."""


class Hub(ThreadingHTTPServer):
    """Repositories in memory, as the commits put them there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens: set[str] = set()
        """Tokens that requests came with."""
        self.commits: list[tuple[str, str, list[str]]] = []
        """Repository, message and paths of each commit, in order."""
        self.repositories: dict[str, dict[str, bytes]] = {}
        """Files by path, of each repository."""
        self.objects: dict[str, bytes] = {}
        """Contents of large files by their SHA-256."""

    @property
    def url(self) -> str:
        """Where to reach it."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers until the context ends."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        self.server.tokens.add(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked.get('organization') or USER}/{asked['name']}"
            self.server.repositories.setdefault(repository, {})
            return self._answer({"url": f"{self.server.url}/{repository}", "name": repository})
        if path == "/api/validate-yaml":
            is_valid = json.loads(body)["content"].startswith("---\n")
            return self._answer({"warnings": [], "errors": [] if is_valid else [{"message": "no metadata"}]})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._answer({"transfer": "basic", "objects": self._uploads(json.loads(body)["objects"])})
        repository, _, call = path.removeprefix("/api/models/").partition("/preupload/")
        if call and repository in self.server.repositories:
            return self._answer({"files": [_upload_mode(file) for file in json.loads(body)["files"]]})
        repository, _, call = path.removeprefix("/api/models/").partition("/commit/")
        if call and repository in self.server.repositories:
            return self._answer(self._commit(repository, body))
        return self._answer({"error": f"no such call: POST {self.path}"}, status=404)

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.removeprefix("/objects/")
        if hashlib.sha256(body).hexdigest() != oid:
            return self._answer({"error": "digest differs"}, status=400)
        self.server.objects[oid] = body
        return self._answer({})

    def _uploads(self, objects: list[dict]) -> list[dict]:
        found = []
        for wanted in objects:
            action = {"upload": {"href": f"{self.server.url}/objects/{wanted['oid']}"}}
            found.append(wanted if wanted["oid"] in self.server.objects else {**wanted, "actions": action})
        return found

    def _commit(self, repository: str, body: bytes) -> dict:
        files, message = self.server.repositories[repository], ""
        paths = []
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                continue
            paths.append(value["path"])
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        self.server.commits.append((repository, message, sorted(paths)))
        oid = hashlib.sha1(body, usedforsecurity=False).hexdigest()
        return {"commitUrl": f"{self.server.url}/{repository}/commit/{oid}", "commitOid": oid}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, value: dict, *, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: pytest's output is for tests."""


def _upload_mode(file: dict) -> dict:
    is_large = file["size"] >= LARGE_BYTES or file["path"].endswith((".safetensors", ".bin", ".pt", ".pth"))
    return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": None}
