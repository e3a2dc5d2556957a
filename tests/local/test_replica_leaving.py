"""What runs in a pod before its replica is told to end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from harness.leaving import waiting
from tests.conftest import free_port
from tests.replica import HARNESS, TOKEN, Replica, poll


@contextlib.contextmanager
def on_a_port(project: str) -> Iterator[tuple[Replica, int]]:
    replica, port = Replica(project), free_port()
    replica.environment.update(DOMINO_SOCKET="", DOMINO_PORT=str(port))
    with replica:
        yield replica.ready(), port


def leave(replica: Replica, port: int, move_s: float, limit_s: float) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DOMINO_REPLICA_DIR": str(replica.directory), "DOMINO_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-I", str(HARNESS / "leaving.py"), str(move_s), str(limit_s)], env=environment
    )


def call(port: int, seconds: float) -> int:
    session = requests.Session()
    session.trust_env = False
    with session:
        return session.post(
            f"http://127.0.0.1:{port}/model", json={"data": {"seconds": seconds}}, auth=(TOKEN, TOKEN), timeout=30
        ).status_code


def test_a_replica_is_told_to_end_when_its_queue_has_run_dry() -> None:
    with on_a_port("sleeps") as (replica, port), ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(call, port, 1) for _ in range(3)]
        poll(lambda: waiting([port]) == 2)
        with leave(replica, port, 0, 30) as leaving:
            assert leaving.wait(20) == 0
        assert replica.process is not None
        replica.process.send_signal(signal.SIGTERM)
        assert [answer.result() for answer in calls] == [200, 200, 200]
        replica.process.wait(10)


def test_a_replica_that_is_told_to_end_answers_whoever_waits_and_takes_nobody_more() -> None:
    with on_a_port("sleeps") as (replica, port), ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, port, 0.5) for _ in range(4)]
        poll(lambda: waiting([port]) == 3)
        assert replica.process is not None
        replica.process.send_signal(signal.SIGTERM)
        poll(lambda: not connects(port))
        assert [answer.result() for answer in calls] == [200] * 4
        replica.process.wait(10)


def connects(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.2):
            return True
    except OSError:
        return False


def test_an_idle_replica_is_left_at_once_and_a_busy_one_when_the_time_is_over() -> None:
    with on_a_port("sleeps") as (replica, port), ThreadPoolExecutor(1) as pool:
        with leave(replica, port, 0, 30) as leaving:
            assert leaving.wait(20) == 0
        running = pool.submit(call, port, 5)
        poll(lambda: replica.in_flight == 1)
        with leave(replica, port, 0.1, 0.2) as leaving:
            assert leaving.wait(20) == 0
        assert not running.done()
        assert running.result() == 200


def test_a_replica_that_never_began_keeps_nobody(tmp_path: Path) -> None:
    environment = {"DOMINO_REPLICA_DIR": str(tmp_path), "PATH": os.environ["PATH"]}
    argv = [sys.executable, "-I", str(HARNESS / "leaving.py"), "0", "30"]
    assert subprocess.run(argv, env=environment, timeout=20, check=False).returncode == 0
