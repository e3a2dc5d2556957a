"""Real replicas for tests: the harness under real uWSGI, over a Unix socket, without any of the plugin."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HARNESS = Path(__file__).parents[1] / "harness"
PROJECTS = Path(__file__).parent / "projects"
TOKEN = "A" * 64


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])

    @property
    def result(self) -> Any:
        assert self.status == 200, self.body
        return self.json["result"]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("replica", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


class Replica:
    """One replica of a project of `tests/projects`, or of an MLflow model's directory.

    Use it as a context manager: everything that it started is gone afterwards, and nothing else may be left.
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        model: Path | None = None,
        function: str = "predict",
        variables: Mapping[str, str] | None = None,
        python: str = os.environ.get("REPLICA_PYTHON", sys.executable),
        files: Mapping[str, str] | None = None,
        folder: str = "replica-",
        **settings: Any,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=folder))  # short: a socket's path has 107 bytes
        self.directory = self.folder / "replica"
        self.socket = self.folder / "s"
        self.log_path = self.folder / "replica.log"
        self._variables = dict(variables or {})
        self.environment: dict[str, str] = {}
        self._python = python
        package = self.folder / "harness" / "_mlflow_domino_harness"
        package.parent.mkdir()
        package.symlink_to(HARNESS)
        self.launcher = package / "launch.py"
        self.source = self.folder / "source"
        self.source.mkdir()
        source: dict[str, Any]
        if project is not None:
            shutil.copy(PROJECTS / f"{project}.py", self.source)
            source = {"kind": "File", "path": str(self.source), "file": f"{project}.py", "function": function}
        else:
            source = {"kind": "Registry", "path": str(model), "name": "iris", "version": "7"}
        for name, content in (files or {}).items():
            (self.source / name).write_text(content)
        self.tokens = self.folder / "tokens"
        self.tokens.mkdir()
        self.write_tokens(TOKEN)
        self.config = {
            "version_id": "v" * 24, "version_number": 3, "endpoint_name": "test", "source": source,
            "tokens": str(self.tokens), "drain_s": 5, "start_timeout_s": 60, **settings,
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def write_tokens(self, *tokens: str) -> str:
        """Replace the tokens; return the digest that workers acknowledge."""
        listed = [{"id": str(n), "sha256": hashlib.sha256(t.encode()).hexdigest()} for n, t in enumerate(tokens)]
        content = json.dumps({"tokens": listed}).encode()
        (self.tokens / "new").write_bytes(content)
        os.replace(self.tokens / "new", self.tokens / "tokens.json")
        return hashlib.sha256(content).hexdigest()

    def __enter__(self) -> Replica:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        config = self.folder / "harness.json"
        config.write_text(json.dumps(self.config))
        environment = {
            "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8",
            "DOMINO_HARNESS_CONFIG": str(config), "DOMINO_REPLICA_DIR": str(self.directory),
            "DOMINO_SOCKET": str(self.socket), "DOMINO_WORKING_DIR": str(self.source),
            "DOMINO_VARIABLES": ",".join(self._variables), **self._variables, **self.environment,
        }  # fmt: skip
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [self._python, "-I", str(self.launcher)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=environment, start_new_session=True,
            )  # fmt: skip

    def end(self, number: int = signal.SIGINT, within: float = 10) -> None:
        """Stop it and see that nothing of it is left."""
        if self.process is None:
            return
        family = self.family()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there {within} s after the signal\n{self.log[-3000:]}") from None
        finally:
            _gone, left = psutil.wait_procs(family, timeout=3)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.kill()
            self.process.wait()
        assert not left, f"left behind: {left}\n{self.log}"

    def family(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            master = psutil.Process(self.process.pid)
            return [master, *master.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @property
    def status(self) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads((self.directory / "status.json").read_text())
            return document
        except FileNotFoundError:
            return {}

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace")

    @property
    def in_flight(self) -> int:
        """Requests in flight, read as the data plane reads them: from the outside, by the documented format."""
        data = (self.directory / "slots").read_bytes()
        workers, threads = struct.unpack_from("<II", data, 8)
        starts = range(64 + 64 * workers, 64 + 64 * workers * (1 + threads), 64)
        return sum(struct.unpack_from("<d", data, at)[0] != 0 for at in starts)

    def wait(self, state: str, within: float = 60) -> dict[str, Any]:
        """Wait for a state of status.json; the other end of the story is an error at once."""
        deadline = time.monotonic() + within
        assert self.process is not None
        while True:
            status = self.status  # once: it may be another one the next time
            seen = status.get("state") if status.get("pid") == self.process.pid else None
            if seen == state:
                return status
            assert seen != "failed", f"{status}\n{self.log}"
            assert time.monotonic() < deadline, f"not {state} within {within} s: {status}\n{self.log}"
            time.sleep(0.01)

    def ready(self) -> Replica:
        self.wait("ready")
        return self

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        token: str | None = TOKEN,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30,
    ) -> Answer:
        sent = dict(headers or {})
        if token is not None:
            sent.setdefault("Authorization", basic(token))
        connection = UnixConnection(str(self.socket), timeout)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def post(self, body: Any, path: str = "/model", **options: Any) -> Answer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return self.request("POST", path, content, headers=headers, **options)

    def call(self, **data: Any) -> Any:
        return self.post({"data": data}).result

    def metrics(self) -> dict[str, float]:
        lines = self.request("GET", "/metrics").body.decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def basic(token: str, password: str | None = None) -> str:
    pair = f"{token}:{token if password is None else password}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


@contextlib.contextmanager
def serving(project: str | None = None, **options: Any) -> Iterator[Replica]:
    """Give a replica that is ready."""
    with Replica(project, **options) as replica:
        yield replica.ready()


def poll(condition: Callable[[], Any], within: float = 10, every: float = 0.02) -> Any:
    """Return the first true value of a condition."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(every)
    return value
