"""A Kubernetes API server for tests: real HTTP, a handful of objects in memory, and nothing that runs."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mlflow_domino.cluster import Cluster

__all__ = ["ApiServer", "api_server"]


class ApiServer(http.server.ThreadingHTTPServer):
    """Keeps objects by their paths, with a resource version that each write must know.

    Attributes
    ----------
    asked : list of str
        Method and path of each request.
    silent : bool
        Whether every answer is a refusal.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.silent = False
        self._writes = 0

    def cluster(self, folder: Path) -> Cluster:
        """Return a client, of a kubeconfig that is written into a folder."""
        path = folder / "kubeconfig"
        document = {
            "current-context": "own",
            "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own", "namespace": "n"}}],
            "clusters": [{"name": "own", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{"name": "own", "user": {"token": "hunter2"}}],
        }
        path.write_text(yaml.safe_dump(document))
        return Cluster(kubeconfig=str(path))

    def put_secret(self, name: str, content: dict[str, str]) -> None:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in content.items()}
        metadata = {"name": name, "namespace": "n"}
        self.write(f"/api/v1/namespaces/n/secrets/{name}", {"kind": "Secret", "metadata": metadata, "data": data})

    def secret(self, name: str) -> dict[str, str]:
        """Return what a Secret holds; empty where there is none."""
        data = self.objects.get(f"/api/v1/namespaces/n/secrets/{name}", {}).get("data", {})
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def write(self, path: str, one: dict[str, Any]) -> dict[str, Any]:
        self._writes += 1
        plain = one.pop("stringData", {})
        if plain:
            encoded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
            one["data"] = {**one.get("data", {}), **encoded}
        one["metadata"] = {**one["metadata"], "uid": "u", "resourceVersion": str(self._writes)}
        self.objects[path] = one
        return one


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ApiServer

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        code, document = self.outcome(path, json.loads(body) if body else {})
        content = json.dumps(document).encode()
        self.send_response_only(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def outcome(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.server.silent:
            return _status(503, "ServiceUnavailable")
        if self.command == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.server.objects:
                return _status(409, "AlreadyExists")
            return 201, self.server.write(path, body)
        found = self.server.objects.get(path)
        if found is None:
            return _status(404, "NotFound")
        if self.command == "PUT":
            if body["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
                return _status(409, "Conflict")
            return 200, self.server.write(path, body)
        if self.command == "PATCH":
            return 200, self.server.write(path, _merged(found, body))
        if self.command == "DELETE":
            del self.server.objects[path]
        return 200, found

    def log_message(self, *_: object) -> None:
        pass


def _merged(found: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Apply a JSON merge patch (RFC 7396)."""
    made = dict(found)
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _merged(made.get(key, {}), value) if isinstance(value, dict) else value
    return made


def _status(code: int, reason: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": reason}


@contextmanager
def api_server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
