"""Faults at random while predictions are submitted: every one that was acknowledged ends with exactly one stored answer.

    python -m tests.benchmarks.predictions_faults [--seconds 300] [--count 2000] [--queue sqlite postgresql] [--seed 1]

Killed with SIGKILL, one every few seconds: dispatcher, the gateway's application, Envoy, the Emperor, a worker of the
harness, seldon-core's microservice, a whole replica. A dispatcher is held up until others have taken its work, and then
goes on; a second dispatcher's clock is moved (see `tests.clocked`). PostgreSQL is stopped as by a crash, and started; the
disk that SQLite is on is full for a moment (as root, who may mount a small one). What is stored is checked by what
the database itself noted (see `tests.audit`). `tests/local/test_async_faults.py` does half a minute of it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from mlflow_domino.controller import Controller
from mlflow_domino.home import Home
from mlflow_domino.queue.database import Database
from mlflow_domino.queue.prediction import State
from mlflow_domino.queue.queue import Queue
from mlflow_domino.views import EndpointView
from tests.audit import Change, audit, audited
from tests.benchmarks.measure import scratch
from tests.benchmarks.queues import declared
from tests.clocked import Clocked
from tests.faults import KINDS, kill, pause
from tests.postgresql import PostgreSQL, postgresql

__all__ = ["Fault", "Trial", "full_disk", "outage", "small_disk"]

#: Makes something go wrong, and returns when it is over.
Fault = Callable[[random.Random], object]

_MODEL = """
import time
def predict(n, s=0):
    began = time.time()
    time.sleep(s)
    return {"n": n, "began_ms": began * 1000}
"""
#: More attempts than chance takes, and time for clocks that are a day wrong.
_SETTINGS: dict[str, Any] = {
    "file": "model.py", "is_async": True, "replicas": 2, "async_max_attempts": 20, "async_keep_s": 30 * 86400,
}  # fmt: skip
_SUBMITTERS = 4
_PAUSES_S = (0.5, 3.0)
#: Nobody who submits is kept waiting longer.
_PATIENCE_S = 120.0
_HELD_UP_S = 5.0
_DISK_MIB = 64
_PRECISION_MS = 2.0


@dataclass
class Trial:
    """Predictions and faults, for a set time.

    Parameters
    ----------
    faults : mapping of str to Fault
        What may go wrong beside killed processes, held up dispatchers and moved clocks.

    Attributes
    ----------
    accepted : dict of str to int
        What was acknowledged: the number that a prediction was given, by its id.
    """

    home: Home
    view: EndpointView
    token: str
    seconds: float
    count: int
    seed: int = 1
    faults: Mapping[str, Fault] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    happened: collections.Counter[str] = field(default_factory=collections.Counter)
    retried: collections.Counter[str] = field(default_factory=collections.Counter)

    @classmethod
    def make(cls, controller: Controller, home: Home, folder: Path, *given: Any, **more: Any) -> Trial:
        """Return one of an endpoint that is made for it."""
        folder.mkdir()
        (folder / "model.py").write_text(_MODEL)
        view, token = controller.create("faults", str(folder), _SETTINGS)
        return cls(home, view, token, *given, **more)

    def survive(self, within_s: float) -> str:
        """Submit while faults happen, wait until nothing is left to answer, check all, and tell what happened.

        Raises
        ------
        AssertionError
            Something was lost, answered twice, answered wrongly, or not within that time.
        """
        database = Database(self.home.queue.read_text().strip())
        try:
            audit(database)
            with Clocked(self.home) as clocked:
                self._run(clocked)
                self._wait(Queue(database), within_s)
            return self._verify(database)
        finally:
            database.close()

    def _run(self, clocked: Clocked) -> None:
        ended = threading.Event()
        with ThreadPoolExecutor(_SUBMITTERS + 1) as pool:
            breaking = pool.submit(self._break, clocked, ended)
            submitting = [pool.submit(self._submit, n, ended) for n in range(_SUBMITTERS)]
            wait(submitting, return_when=FIRST_EXCEPTION)
            ended.set()
            for one in (*submitting, breaking):
                one.result()

    def _submit(self, first: int, ended: threading.Event) -> None:
        chosen, began = random.Random(self.seed * 1000 + first), time.monotonic()
        for n in range(first, self.count, _SUBMITTERS):
            if ended.wait(max(0.0, began + self.seconds * n / self.count - time.monotonic())):
                return
            slow = chosen.random() < 0.05
            self._submit_one(n, round(chosen.uniform(0.5, 2.0) if slow else chosen.uniform(0, 0.02), 3))

    def _submit_one(self, n: int, s: float) -> None:
        """Submit until it is acknowledged; the key makes an unseen acknowledgement no second prediction."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                answer = requests.post(
                    self.view.url, json={"parameters": {"n": n, "s": s}}, timeout=60,
                    headers={"Authorization": f"Bearer {self.token}", "Idempotency-Key": f"n{n}"},
                )  # fmt: skip
            except requests.RequestException as error:
                told = type(error).__name__
            else:
                if answer.status_code == 200:
                    self.accepted[answer.json()["asyncPredictionId"]] = n
                    return
                assert answer.status_code >= 500, answer.text
                told = str(answer.status_code)
            self.retried[told] += 1
            assert time.monotonic() < deadline, f"not accepted within {_PATIENCE_S:g} s, the last answer was {told}"
            time.sleep(0.1)

    def _break(self, clocked: Clocked, ended: threading.Event) -> None:
        chosen = random.Random(self.seed)
        others: dict[str, Fault] = {
            "clock moved": clocked.move, "second dispatcher": lambda _: clocked.kill(),
            "dispatcher held up": lambda _: pause(self.home, "dispatcher", _HELD_UP_S), **self.faults,
        }  # fmt: skip
        # Each at least once, where there is time; then by chance.
        first = chosen.sample([*KINDS, *others], len(KINDS) + len(others))
        while not ended.wait(chosen.uniform(*_PAUSES_S)):
            kind = first.pop() if first else chosen.choice([*KINDS, *others])
            if kind in others:
                others[kind](chosen)
                self.happened[kind] += 1
            elif kill(self.home, kind, seed=chosen):
                self.happened[kind] += 1

    def _wait(self, queue: Queue, within_s: float) -> None:
        endpoint_id, deadline = self.view.endpoint.id, time.monotonic() + within_s
        while (depth := queue.depth(endpoint_id)).waiting + depth.running:
            assert time.monotonic() < deadline, f"not answered within {within_s:g} s: {depth}"
            time.sleep(0.2)

    def _verify(self, database: Database) -> str:
        assert sorted(self.accepted.values()) == list(range(self.count)), "a submission came to nothing, or to two"
        queue, endpoint_id, changes = Queue(database), self.view.endpoint.id, audited(database)
        for one, n in self.accepted.items():
            found = queue.get(endpoint_id, one)
            assert found is not None, f"{one} was acknowledged, and is lost"
            assert found.state is State.SUCCEEDED, f"{one}: {found.errors} {found.attempts}"
            answer = json.loads(found.result or "")
            assert answer["n"] == n, f"{one} has the answer of another: {answer}"
            _check(one, changes[one], answer["began_ms"])
        assert len(queue.find(endpoint_id, limit=self.count + 1)) == self.count, "there are more than were acknowledged"
        counted = queue.counts()[endpoint_id]
        leases = sum(change.leases for own in changes.values() for change in own)
        return (
            f"{self.count} acknowledged, {self.count} answered once; {leases} leases, {counted['retried']} runs lost, "
            f"{counted['fenced']} late answers refused\n  faults: {dict(self.happened)}\n  submitted again: {dict(self.retried)}"
        )


def _check(prediction_id: str, changes: list[Change], began_ms: float) -> None:
    """See that one answer was stored, by the last lease, of a run that had not begun before it was given."""
    answers = [change for change in changes if change.answers]
    leases = [change for change in changes if change.leases]
    assert len(answers) == 1, f"{prediction_id} was answered {len(answers)} times: {changes}"
    assert changes[-1] is answers[0], f"{prediction_id} went on after its answer: {changes}"
    assert answers[0].was is State.RUNNING, f"{prediction_id} was answered without a lease: {changes}"
    assert answers[0].fence == leases[-1].fence == len(leases), (
        f"{prediction_id} was answered behind a fence: {changes}"
    )
    assert began_ms >= leases[-1].at_ms - _PRECISION_MS, f"{prediction_id} has the answer of a lost run: {changes}"


def outage(server: PostgreSQL) -> Fault:
    """Return what has PostgreSQL crash, and come back in a second."""

    def happen(_: random.Random) -> None:
        server.stop()
        time.sleep(1)
        server.start()

    return happen


def full_disk(folder: Path) -> Fault:
    """Return what fills the disk that a folder is on, for a second."""

    def happen(_: random.Random) -> None:
        filler = folder / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(b"\0" * (1 << 20)):
                    pass
            time.sleep(1)
        finally:
            filler.unlink(missing_ok=True)

    return happen


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk of its own; false where that is not allowed."""
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m,mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(argv, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--queue", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for name in options.queue:
        print(f"{name}: {_whole(name, options)}", flush=True)


def _whole(name: str, options: argparse.Namespace) -> str:
    with scratch() as folder, contextlib.ExitStack() as stack:
        server, faults = None, dict[str, Fault]()
        if name == "postgresql":
            server = postgresql()
            stack.callback(server.remove)
            faults["PostgreSQL"] = outage(server)
        disk = folder / "disk"
        small = name == "sqlite" and stack.enter_context(small_disk(disk))
        domino = stack.enter_context(declared(folder / "d", server))
        if small:
            domino.home.predictions.symlink_to(disk / "predictions.db")
            faults["full disk"] = full_disk(disk)
        trial = Trial.make(
            domino.controller, domino.home, folder / "p", options.seconds, options.count, options.seed, faults
        )
        return trial.survive(within_s=300)


if __name__ == "__main__":
    sys.exit(main())
