"""An asynchronous endpoint without a data plane: the gateway's application, a dispatcher, and a stand-in for replicas."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient

from mlflow_domino.gateway.app import create_app
from mlflow_domino.gateway.inventory import AsyncEndpoint, Inventory, QueueAccess, write_inventory
from mlflow_domino.gateway.predictions import PATH
from mlflow_domino.gateway.wake import follow
from mlflow_domino.home import write_json, write_text
from mlflow_domino.queue.database import sqlite_url
from mlflow_domino.queue.queue import Queue
from mlflow_domino.secret import digest
from tests.conftest import eventually

E = "e" * 24
TOKEN = "t" * 64
OWN = "o" * 64


class StandIn:
    """Answers Seldon's protocol on a Unix socket, as its requests ask it to: ``{"parameters": {"do": …}}``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ready = True
        self.seen: list[tuple[str, int]] = []
        self.asked: list[Any] = []
        self.tokens: set[str] = set()
        self.running: set[str] = set()
        self.most = 0
        self.looks = 0
        self.released = threading.Event()
        self.stoppable = False
        #: None: there is no such path, as in replicas of early releases.
        self.progress: Any = {}
        self.progress_asked = 0
        self._stopped: set[str] = set()
        self._lock = threading.Lock()
        self._server = _serve(path, self)

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self.path.unlink(missing_ok=True)

    def predict(self, message: Any) -> tuple[int, Any] | None:
        """Return status and document; None: the connection breaks."""
        meta, request = message["meta"], message["jsonData"]
        puid = meta["puid"]
        with self._lock:
            self.seen.append((puid, meta["tags"]["attempt"]))
            self.asked.append(message)
            self.running.add(puid)
            self.most = max(self.most, len(self.running))
        try:
            return self._do(request.get("parameters"), meta)
        finally:
            with self._lock:
                self.running.discard(puid)

    def _do(self, parameters: Any, meta: Any) -> tuple[int, Any] | None:
        do = parameters.get("do", "echo")
        first = sum(puid == meta["puid"] for puid, _ in self.seen) == 1
        if do == "wait":
            while not self.released.wait(0.01) and meta["puid"] not in self._stopped:
                pass
        elif do == "sleep":
            time.sleep(parameters["s"])
        elif do == "drop" or (do == "drop once" and first):
            return None
        elif do == "big":
            return 200, {"jsonData": "x" * parameters["size"], "meta": meta}
        elif do == "nonsense":
            return 200, {"nothing": 1}
        elif do in _FAILURES and parameters.get("s"):
            time.sleep(parameters["s"])
        if do in _FAILURES or (do.endswith(" once") and first):
            code, reason = _FAILURES[do.removesuffix(" once")]
            return code, {"status": {"status": "FAILURE", "code": code, "info": f"it is {do}", "reason": reason}}
        if meta["puid"] in self._stopped:
            return 503, {"status": {"status": "FAILURE", "code": 503, "info": "stopped", "reason": "LOST"}}
        return 200, {"jsonData": {"echo": parameters, "attempt": meta["tags"]["attempt"]}, "meta": meta}

    def stop(self, puid: str) -> int:
        if not self.stoppable or puid not in self.running:
            return 404
        self._stopped.add(puid)
        return 200


_FAILURES = {
    "failing": (500, "MODEL_ERROR"), "refused": (400, "MODEL_ERROR"), "busy": (429, "BUSY"), "loading": (503, "NOT_READY"),
    "late": (504, "TIMEOUT"), "lost": (503, "LOST"),
}  # fmt: skip


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def get_request(self) -> Any:
        request, _ = super().get_request()
        return request, ("local", 0)


def _serve(path: Path, stand_in: StandIn) -> _Server:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            stand_in.tokens.add(self.headers["Authorization"])
            answer = stand_in.predict(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if answer is not None:
                self._say(*answer)

        def do_GET(self) -> None:
            if self.path == "/progress":
                stand_in.progress_asked += 1
                self._say(404 if stand_in.progress is None else 200, stand_in.progress)
                return
            stand_in.looks += 1
            self._say(200 if stand_in.ready else 503, {})

        def do_DELETE(self) -> None:
            self._say(stand_in.stop(self.path.rpartition("/")[2]), {})

        def _say(self, status: int, document: Any) -> None:
            body = json.dumps(document).encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = _Server(str(path), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class Gateway:
    """The gateway's application in this process, and a dispatcher in another."""

    def __init__(self, folder: Path, *, url: str | None = None) -> None:
        self.folder = folder
        self.file = folder / "gateway.json"
        write_text(folder / "queue", url or sqlite_url(folder / "predictions.db"))
        write_text(folder / "management-token", "m" * 64)
        write_text(folder / "own-token", OWN)
        tokens = [{"id": "a", "sha256": digest(TOKEN)}, {"id": "gateway", "sha256": digest(OWN)}]
        write_json(folder / "tokens.json", {"tokens": tokens})
        self.access = QueueAccess(str(folder / "queue"), str(folder / "bell"))
        self.generation = 0
        self.endpoints: dict[str, AsyncEndpoint] = {}
        self.dispatchers: list[subprocess.Popen[bytes]] = []
        self.stand_ins: list[StandIn] = []
        self.application = create_app(self.file)
        self.client: FlaskClient = self.application.test_client()
        self.log = folder / "dispatcher.log"

    @property
    def queue(self) -> Queue:
        """The queue itself, as the application has opened it."""
        return next(iter(self.application.extensions["predictions"]._queues.values()))

    def stand_in(self, name: str = "0") -> StandIn:
        self.stand_ins.append(StandIn(self.folder / f"r{name}"))
        return self.stand_ins[-1]

    def publish(self, *stand_ins: StandIn, endpoint_id: str = E, **settings: Any) -> None:
        """Route an endpoint's predictions to replicas."""
        values: dict[str, Any] = {
            "stopped": False, "version": 1, "limit": 2, "timeout_s": 60.0, "keep_s": 1000.0, "max_attempts": 3, "max_queued": 1000, "drain_s": 600.0,
        }  # fmt: skip
        before = self.endpoints.get(endpoint_id)
        if before is not None:
            values = {key: getattr(before, key) for key in values}
        addresses = tuple(str(one.path) for one in stand_ins)
        self.endpoints[endpoint_id] = AsyncEndpoint(
            endpoint_id, str(self.folder / "tokens.json"), str(self.folder / "own-token"), addresses=addresses, **(values | settings)
        )  # fmt: skip
        self.write()

    def write(self) -> None:
        """Replace the inventory; a dispatcher that runs follows it when this returns."""
        self.generation += 1
        inventory = Inventory(str(self.folder / "admin"), str(self.folder / "management-token"), queue=self.access)
        asynchronous = tuple(self.endpoints.values())
        write_inventory(
            self.file, dataclasses.replace(inventory, asynchronous=asynchronous, generation=self.generation)
        )
        assert follow(self.access.wake, self.generation, timeout_s=20)

    def dispatch(self, changes: str = "") -> subprocess.Popen[bytes]:
        """Start a dispatcher, after some changes to its module `d`."""
        code = f"import sys\nimport mlflow_domino.gateway.dispatcher as d\n{changes}\nd.main(sys.argv[1])"
        with self.log.open("ab") as log:
            argv = [sys.executable, "-c", code, str(self.file)]
            self.dispatchers.append(subprocess.Popen(argv, stdout=log, stderr=log))
        return self.dispatchers[-1]

    def call(self, method: str, path: str = "", *, endpoint_id: str = E, token: str = TOKEN, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {token}", **more.pop("headers", {})}
        return self.client.open(f"{PATH}/{endpoint_id}{path}", method=method, headers=headers, **more)

    def submit(self, endpoint_id: str = E, headers: dict[str, str] | None = None, **parameters: Any) -> str:
        answer = self.call("POST", endpoint_id=endpoint_id, json={"parameters": parameters}, headers=headers or {})
        assert answer.status_code == 200, answer.text
        return str(answer.json["asyncPredictionId"])

    def show(self, prediction_id: str, endpoint_id: str = E) -> dict[str, Any]:
        answer = self.call("GET", f"/{prediction_id}?details=true", endpoint_id=endpoint_id)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json
        return document

    def ended(self, prediction_id: str, endpoint_id: str = E, within: float = 30) -> dict[str, Any]:
        """Return a prediction once it has ended."""
        found: dict[str, Any] = {}

        def look() -> bool:
            found.clear()
            found.update(self.show(prediction_id, endpoint_id))
            return bool(found["status"] != "queued")

        eventually(look, within=within)
        return found

    def close(self) -> None:
        for stand_in in self.stand_ins:
            stand_in.close()
        for dispatcher in self.dispatchers:
            dispatcher.terminate()
        for dispatcher in self.dispatchers:
            assert dispatcher.wait(15) in (0, -9, -15), self.log.read_text()
        self.application.extensions["predictions"].close()


@contextlib.contextmanager
def gateway(folder: Path, **options: Any) -> Iterator[Gateway]:
    made = Gateway(folder, **options)
    try:
        yield made
    finally:
        made.close()
