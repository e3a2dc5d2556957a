"""Real asynchronous replicas for tests: seldon-core's microservice beside the harness, called as the dispatcher does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil

from mlflow_domino import seldon
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.environment import Environments
from mlflow_domino.home import Home
from tests.replica import TOKEN, Answer, Replica, UnixConnection

GATEWAY = "G" * 64
PREDICT = "/api/v1.0/predictions"


def seldon_python(folder: Path, environments: Path) -> Path:
    """Return the Python of seldon-core's environment, made once among environments that tests share."""
    home = Home(folder)
    home.root.mkdir(exist_ok=True)
    home.environments.symlink_to(environments)
    return seldon.build(Environments(home), Settings(), Secrets(), lambda _line: None).python


class AsyncReplica(Replica):
    """A replica whose tokens are a caller's and the gateway's."""

    def __init__(self, project: str | None = None, *, python: Path, port: int = 0, **options: Any) -> None:
        super().__init__(project, is_async=True, seldon_python=str(python), **options)
        self.port = port
        if port:
            self.environment |= {"DOMINO_SOCKET": "", "DOMINO_SELDON_PORT": str(port)}

    def write_tokens(self, *tokens: str, gateway: str = GATEWAY) -> str:
        named = [*((str(n), token) for n, token in enumerate(tokens)), ("gateway", gateway)]
        listed = [{"id": name, "sha256": hashlib.sha256(token.encode()).hexdigest()} for name, token in named]
        content = json.dumps({"tokens": listed}).encode()
        (self.tokens / "new").write_bytes(content)
        os.replace(self.tokens / "new", self.tokens / "tokens.json")
        return hashlib.sha256(content).hexdigest()

    def ask(
        self, method: str, path: str, body: bytes | None = None, *, authorization: str = f"Bearer {GATEWAY}",
        headers: dict[str, str] | None = None, timeout: float = 30,
    ) -> Answer:  # fmt: skip
        """Call the microservice."""
        connection: HTTPConnection
        if self.port:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        else:
            connection = UnixConnection(f"{self.socket}.seldon", timeout)
        sent = {"Authorization": authorization} if authorization else {}
        with contextlib.closing(connection):
            connection.request(method, path, body, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())

    def send(self, message: Any, path: str = PREDICT, **options: Any) -> Answer:
        """Send a Seldon message."""
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return self.ask("POST", path, json.dumps(message).encode(), headers=headers, **options)

    def predict(self, *, within_s: float | None = None, **arguments: Any) -> Answer:
        """Ask for a prediction, as the dispatcher does."""
        tags: dict[str, Any] = {"attempt": 1}
        if within_s is not None:
            tags["timeout_ms"] = int(within_s * 1000)
        return self.send({"jsonData": {"parameters": arguments}, "meta": {"puid": "p-1", "tags": tags}})

    def answers(self) -> bool:
        """Whether the microservice says that it takes work."""
        with contextlib.suppress(OSError, HTTPException):
            return self.ask("GET", "/ready").status == 200
        return False

    def microservice(self) -> list[psutil.Process]:
        """Return the microservice's processes, the master first; none while it is being started again."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[-1:] == [str(self.launcher.with_name("seldon.py"))]:
                    return [process, *process.children()]
        return []


@contextlib.contextmanager
def serving_messages(project: str | None, python: Path, **options: Any) -> Iterator[AsyncReplica]:
    """Give an asynchronous replica that is ready."""
    with AsyncReplica(project, python=python, **options) as replica:
        replica.ready()
        yield replica


def caller() -> str:
    """Return what a caller of the endpoint would send, who is not the gateway."""
    return f"Bearer {TOKEN}"
