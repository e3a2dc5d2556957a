"""Submit, poll and lease with 100 predictions in the queue and with 100,000: how many times slower, and what memory.

    python -m tests.benchmarks.backlog [--many 100000] [--rounds 5] [--url postgresql://…]

Without `--url` in SQLite. The figures are medians of interleaved rounds; each step is a transaction of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import sqlalchemy as sa

from mlflow_domino.queue.database import Database, sqlite_url
from mlflow_domino.queue.prediction import Outcome, State, Submission, new_prediction_id, now_ms
from mlflow_domino.queue.queue import Queue
from mlflow_domino.queue.schema import predictions
from mlflow_domino.queue.turn import Turn
from tests.benchmarks.measure import scratch

_STEPS = 200
_FAR_MS = 10**9
#: What a ratio may be before this fails: the index has one level more, and its pages are not all in the cache.
_LIMIT = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--url", help="a database that may be written to")
    options = parser.parse_args()
    with scratch() as folder:
        sides = {
            name: _Side(folder, options.url, name, count) for name, count in (("few", 100), ("many", options.many))
        }
        before = _rss_mib()
        times: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
        for _ in range(options.rounds):
            for name, side in sides.items():
                for step, seconds in side.measure().items():
                    times[name].setdefault(step, []).append(seconds)
        sys.exit(_tell(times, before, _rss_mib(), options.many))


class _Side:
    """A queue with so many predictions that wait."""

    def __init__(self, folder: Path, url: str | None, name: str, count: int) -> None:
        self._endpoint = {"few": "a" * 24, "many": "b" * 24}[name]
        self._database = Database(url or sqlite_url(folder / f"{name}.db"))
        self._queue = Queue(self._database)
        at_ms = now_ms()
        rows = [
            {
                "id": new_prediction_id(at_ms - n), "endpoint_id": self._endpoint, "state": int(State.QUEUED), "priority": n % 3,
                "due_ms": at_ms + _FAR_MS, "deadline_ms": at_ms + _FAR_MS, "submitted_ms": at_ms - n, "strikes": 0, "fence": 0,
                "cancel": 0, "webhook": 0, "request": '{"parameters": {"x": 1}}',
            }
            for n in range(count)
        ]  # fmt: skip
        for start in range(0, count, 5000):
            bite = rows[start : start + 5000]
            self._database.write(lambda connection, bite=bite: connection.execute(predictions.insert(), bite))  # type: ignore[misc]
        self._some = [row["id"] for row in rows[:: max(1, count // _STEPS)]][:_STEPS]

    def measure(self) -> dict[str, float]:
        submission = Submission(self._endpoint, '{"parameters": {"x": 1}}', now_ms() + _FAR_MS)
        some = iter(self._some * (_STEPS // len(self._some) + 1))
        return {
            "submit": _median(lambda: self._queue.submit(submission)),
            "poll": _median(lambda: self._queue.poll(self._endpoint, str(next(some)))),
            "lease and answer": _median(self._lease),
        }

    def _lease(self) -> None:
        def work(connection: sa.Connection) -> None:
            turn = Turn(connection, "benchmark", now_ms())
            for lease in turn.take(self._endpoint, 1, capacity=10**6, version=1, keep_ms=_FAR_MS):
                assert turn.finish(lease, Outcome(State.SUCCEEDED, "1"), keep_ms=_FAR_MS, ran_ms=1)
            turn.end()

        self._database.write(work)


def _median(step: Callable[[], object]) -> float:
    took = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        step()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _rss_mib() -> float:
    return float(psutil.Process().memory_info().rss) / (1 << 20)


def _tell(times: dict[str, dict[str, list[float]]], before: float, after: float, many: int) -> int:
    print(f"{'medians, ms':20} with 100   with {many}   times")
    worst = 0.0
    for step in times["few"]:
        few, much = (statistics.median(times[name][step]) * 1000 for name in ("few", "many"))
        worst = max(worst, much / few)
        print(f"{step:20} {few:8.3f} {much:12.3f} {much / few:7.2f}")
    print(f"memory while measuring: {before:.0f} MiB before, {after:.0f} MiB after")
    return 0 if worst <= _LIMIT else 1


if __name__ == "__main__":
    main()
