"""The queues that are compared: each accepts predictions of a model that takes a set time, and stores their answers."""

from __future__ import annotations

import abc
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mlflow_domino.gateway.inventory import read_inventory
from mlflow_domino.gateway.wake import Waiter, ring
from mlflow_domino.home import Home
from mlflow_domino.queue.database import Database
from mlflow_domino.queue.prediction import Submission, now_ms
from mlflow_domino.queue.queue import Queue
from tests.benchmarks.generator import Target, send_all
from tests.benchmarks.servers import Domino, basic, environment, running
from tests.conftest import free_port, processes_of
from tests.postgresql import PostgreSQL

__all__ = ["Burst", "Queued", "celery", "celery_over_http", "declared", "ours"]

_APPS = Path(__file__).parent / "apps"
_MODEL = """
import time
def predict(x=0):
    end = time.perf_counter() + {seconds}
    while time.perf_counter() < end:
        pass
    return {{"x": x}}
"""


@dataclass
class Burst:
    """What a burst of submissions took until all were accepted, and until all answers were there."""

    accepted_s: float
    whole_s: float
    own_cpu_s: float


class Queued(abc.ABC):
    """A queue that runs."""

    #: Its processes now.
    processes: Callable[[], list[psutil.Process]]

    @abc.abstractmethod
    def burst(self, count: int, connections: int) -> Burst:
        """Submit so many from so many connections or processes, and wait for all answers."""

    @abc.abstractmethod
    def one(self, count: int) -> list[float]:
        """Submit one after the other, and return the seconds until each answer."""

    def straight(self, count: int) -> list[float]:
        """Do the same as `one` by a library in the caller's process, without HTTP, tokens and a proxy."""
        return self.one(count)

    def cpu_s(self) -> float:
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
        return total


@dataclass
class _Http(Queued):
    """What speaks Domino's wire; `closes`: it ends each connection after its answer."""

    url: str
    token: str
    processes: Callable[[], list[psutil.Process]]
    closes: bool = False
    _connection: http.client.HTTPConnection | None = None

    @property
    def _headers(self) -> dict[str, str]:
        return {**basic(self.token), "Content-Type": "application/json"}

    def burst(self, count: int, connections: int) -> Burst:
        url = urllib.parse.urlsplit(self.url)
        target = Target((url.hostname or "", url.port or 80), url.path, self._headers, self.closes)
        requests = [(n, target.request({"parameters": {"x": n}})) for n in range(count)]
        ids: dict[str, int] = {}

        def accepted(tag: int, status: str, answer: bytes) -> None:
            assert status == "200", answer
            ids[json.loads(answer.partition(b"\r\n\r\n")[2])["asyncPredictionId"]] = tag

        began, cpu = time.perf_counter(), time.process_time()
        send_all(target, iter(requests), accepted, connections)
        accepted_s = time.perf_counter() - began
        while self._call("GET", "?depth=true&limit=1")["depth"] | {"oldest_age_s": 0} != _EMPTY:
            time.sleep(0.02)
        answers = self._answers(ids)
        own_cpu_s = time.process_time() - cpu
        assert {ids[one]: answer["x"] for one, answer in answers.items()} == dict(
            zip(range(count), range(count), strict=True)
        )
        return Burst(accepted_s, time.perf_counter() - began, own_cpu_s)

    def _answers(self, ids: dict[str, int]) -> dict[str, Any]:
        url = urllib.parse.urlsplit(self.url)
        target = Target((url.hostname or "", url.port or 80), url.path, self._headers, self.closes)
        head = "\r\n".join(f"{name}: {value}" for name, value in {"Host": "x", **self._headers}.items())
        polls = [(n, f"GET {url.path}/{one} HTTP/1.1\r\n{head}\r\n\r\n".encode()) for n, one in enumerate(ids)]
        answers: dict[str, Any] = {}

        def polled(_tag: int, _status: str, answer: bytes) -> None:
            document = json.loads(answer.partition(b"\r\n\r\n")[2])
            answers[document["asyncPredictionId"]] = document["result"]

        send_all(target, iter(polls), polled, 8)
        return answers

    def one(self, count: int) -> list[float]:
        latencies = []
        for n in range(count):
            began = time.perf_counter()
            answer = self._call("POST", "", json.dumps({"parameters": {"x": n}}), {"Prefer": "wait=30"})
            assert answer["result"] == {"x": n}
            latencies.append(time.perf_counter() - began)
        return latencies

    def _call(self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> Any:
        url = urllib.parse.urlsplit(self.url)
        if self._connection is None or self.closes:
            self.close()
            self._connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        self._connection.request(method, url.path + path, body, {**self._headers, **(headers or {})})
        response = self._connection.getresponse()
        text = response.read()
        assert response.status == 200, text
        return json.loads(text)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


@dataclass
class _Ours(_Http):
    home: Home = field(kw_only=True)

    def straight(self, count: int) -> list[float]:
        endpoint_id, latencies = self.url.rpartition("/")[2], []
        wake = read_inventory(self.home.run / "gateway.json").queue.wake  # type: ignore[union-attr]
        queue = Queue(Database(self.home.queue.read_text().strip()))
        for n in range(count):
            began = time.perf_counter()
            one, _ = queue.submit(Submission(endpoint_id, json.dumps({"parameters": {"x": n}}), now_ms() + 3_600_000))
            with Waiter(one) as waiter:
                ring(wake, endpoint_id)
                while (found := queue.poll(endpoint_id, one)) is not None and found[0].status == "queued":
                    waiter.wait(0.1)
            assert found is not None
            assert json.loads(found[1] or "") == {"x": n}
            latencies.append(time.perf_counter() - began)
        queue.close()
        return latencies


_EMPTY = {"queued": 0, "delayed": 0, "running": 0, "oldest_age_s": 0}


@contextlib.contextmanager
def ours(folder: Path, domino: Domino, *, model_s: float, workers: int, name: str = "queue") -> Iterator[Queued]:
    """An asynchronous endpoint on the local data plane, with its microservice of seldon-core."""
    project = folder / name
    project.mkdir()
    (project / "model.py").write_text(_MODEL.format(seconds=model_s))
    view, token = domino.controller.create(
        name, str(project), {"file": "model.py", "is_async": True, "workers": workers}
    )
    queue = _Ours(view.url, token, lambda: processes_of(domino.home), home=domino.home)
    _until_answered(queue)
    with contextlib.closing(queue):
        yield queue


def _until_answered(queue: Queued) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            queue.one(1)
        except (AssertionError, OSError, http.client.HTTPException):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


@dataclass
class _Celery(Queued):
    client: subprocess.Popen[str]
    processes: Callable[[], list[psutil.Process]]

    def burst(self, count: int, connections: int) -> Burst:
        return Burst(**self._tell(f"burst {count}"))

    def one(self, count: int) -> list[float]:
        latencies: list[float] = self._tell(f"one {count}")["latencies_s"]
        return latencies

    def _tell(self, line: str) -> Any:
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        self.client.stdin.write(line + "\n")
        self.client.stdin.flush()
        return json.loads(self.client.stdout.readline())


@contextlib.contextmanager
def celery(folder: Path, *, model_s: float, workers: int, submitters: int) -> Iterator[Queued]:
    """Celery with its own client."""
    with _celery(folder, model_s, workers) as (programs, variables, processes):
        client = subprocess.Popen(
            [str(programs / "python"), str(_APPS / "tasks_client.py"), str(submitters)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables},
        )  # fmt: skip
        with client:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n"
            yield _Celery(client, processes)
            assert client.stdin is not None
            client.stdin.close()


@contextlib.contextmanager
def celery_over_http(folder: Path, *, model_s: float, workers: int, submitters: int) -> Iterator[Queued]:
    """Celery behind an application of Flask under uWSGI, with tokens, as ours is; nothing stands in front of it."""
    with _celery(folder, model_s, workers) as (programs, variables, processes):
        port, token = free_port(), "t" * 64
        server = [str(programs / "pyuwsgi"), "--master", "--die-on-term", "--need-app", "--disable-logging",
                  "--http-socket", f"127.0.0.1:{port}", "--processes", str(submitters), "--listen", "100",
                  "--wsgi-file", str(_APPS / "tasks_http.py")]  # fmt: skip
        (folder / "http").mkdir()
        with running(server, folder / "http", {**variables, "BENCHMARK_TOKEN": token}) as of_server:
            url = f"http://127.0.0.1:{port}/predictions"
            queue = _Http(url, token, lambda: [*processes(), *of_server()], closes=True)
            _until_answered(queue)
            with contextlib.closing(queue):
                yield queue


@contextlib.contextmanager
def _celery(
    folder: Path, model_s: float, workers: int
) -> Iterator[tuple[Path, dict[str, str], Callable[[], list[psutil.Process]]]]:
    """Celery with Redis as broker and for results, which is on disk before anything is acknowledged."""
    programs = environment("celery", "celery[redis]==5.5.3", "flask", "pyuwsgi", libraries=())
    port = free_port()
    folder.mkdir()
    (folder / "redis").mkdir()
    redis = [_redis_server(), "--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always",
             "--save", "", "--dir", str(folder / "redis")]  # fmt: skip
    variables = {"BENCHMARK_REDIS": f"redis://127.0.0.1:{port}/0", "BENCHMARK_MODEL_S": str(model_s), "PYTHONPATH": str(_APPS),
                 "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    worker = [str(programs / "celery"), "-A", "tasks", "worker", "--pool", "prefork", "--concurrency", str(workers),
              "--loglevel", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]  # fmt: skip
    with running(redis, folder / "redis") as of_redis, running(worker, folder, variables) as of_worker:
        yield programs, variables, lambda: [*of_redis(), *of_worker()]


def _redis_server() -> str:
    if shutil.which("redis-server") is None and os.getuid() == 0 and shutil.which("apt-get"):
        # RUNLEVEL=1: the package is not to start a server of its own.
        environment = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", "redis-server"]):
            subprocess.run(["apt-get", *words], env=environment, stdout=subprocess.DEVNULL, check=True)
    found = shutil.which("redis-server")
    if found is None:
        raise SystemExit("there is no redis-server: Debian's package of that name has it")
    return found


@contextlib.contextmanager
def declared(folder: Path, server: PostgreSQL | None = None) -> Iterator[Domino]:
    """A home of its own, whose local data plane has its queue in PostgreSQL where a server is given."""
    folder.mkdir()
    domino = Domino(folder)
    if server is not None:
        with domino.home.config.open("a") as file:
            file.write(f'queue = "{server.url}"\n')
    try:
        yield domino
    finally:
        domino.end()


if __name__ == "__main__":
    sys.exit("this is no program: python -m tests.benchmarks.predictions")
