"""The port on which a replica answers for its health, whatever its workers are at."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.conftest import free_port
from tests.replica import Answer, Replica, poll


@contextlib.contextmanager
def probed(project: str, **options: Any) -> Iterator[tuple[Replica, int]]:
    replica, port = Replica(project, **options), free_port()
    replica.environment["DOMINO_PROBE_PORT"] = str(port)
    with replica:
        yield replica, port


def ask(port: int, path: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def status(port: int, path: str) -> int | None:
    with contextlib.suppress(OSError):
        return ask(port, path).status
    return None


def test_a_replica_that_loads_is_healthy_and_not_ready() -> None:
    with probed("loads_slowly_in_one_worker", workers=2) as (replica, port):
        poll(lambda: status(port, "/ready") == 503)
        assert ask(port, "/health").body == b"ok\n"
        (replica.source / "go").touch()
        poll(lambda: status(port, "/ready") == 200)
        assert ask(port, "/model").status == 404


def test_a_replica_whose_workers_are_all_busy_is_healthy_and_ready() -> None:
    with probed("sleeps") as (replica, port), ThreadPoolExecutor(1) as pool:
        replica.ready()
        running = pool.submit(replica.post, {"data": {"seconds": 3}})
        poll(lambda: replica.in_flight == 1)
        assert status(port, "/health") == 200
        ready = ask(port, "/ready")
        assert (ready.status, ready.headers["X-Domino-In-Flight"]) == (200, "1")
        digest = replica.write_tokens("B" * 64)
        poll(lambda: ask(port, "/ready").headers.get("X-Domino-Tokens") == digest)
        assert not running.done()
        assert running.result().status == 200
        assert digest == hashlib.sha256((replica.tokens / "tokens.json").read_bytes()).hexdigest()


def test_a_replica_in_which_no_worker_can_load_any_more_is_unhealthy() -> None:
    with probed("fails_to_load_twice", start_timeout_s=3) as (replica, port):
        replica.ready()
        assert status(port, "/health") == 200
        with contextlib.suppress(OSError, http.client.HTTPException):
            replica.post({"data": {}})
        poll(lambda: status(port, "/ready") == 503, within=20)
        poll(lambda: status(port, "/health") == 503, within=20)
