"""Asynchronous predictions beside Celery with Redis: accepted a second, answered a second, time to the answer.

    python -m tests.benchmarks.predictions [--rounds 3] [--count 2000] [--model-ms 1] [--sides …]

The same job on every side: a model that keeps a processor busy for so long, two workers, submissions that are on disk
when they are acknowledged (SQLite synchronous=FULL, PostgreSQL's defaults, Redis appendfsync=always), answers that are
stored, and a run that is repeated when its worker dies (leases with fences; Celery's late acknowledgement). Over HTTP,
with tokens: ours through Envoy, Celery behind an application of Flask under uWSGI, alone on its port. "straight" is the
time to the answer without HTTP: our queue's library, and Celery's own client, in the caller's process, the latter with a
row of its own too. Sides take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from pathlib import Path

from tests.benchmarks.measure import scratch, wait_for_quiet
from tests.benchmarks.queues import Burst, Queued, celery, celery_over_http, declared, ours
from tests.postgresql import postgresql

_CELERY = "Celery over HTTP"
_CLIENT = "Celery's own client"
_SIDES = ("ours, SQLite", "ours, PostgreSQL", _CELERY, _CLIENT)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--submitters", type=int, default=4, help="processes of Celery's client, or of its application")
    parser.add_argument("--model-ms", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=_SIDES, default=list(_SIDES))
    options = parser.parse_args()
    with scratch() as folder, contextlib.ExitStack() as stack:
        sides = {name: _start(name, folder, options, stack) for name in options.sides}
        results = _compare(sides, options)
    print(_table(results))
    sys.exit(_verdict(results))


def _start(name: str, folder: Path, options: argparse.Namespace, stack: contextlib.ExitStack) -> Queued:
    print(f"starting {name} …", file=sys.stderr)
    model_s = options.model_ms / 1000
    theirs = {_CELERY: celery_over_http, _CLIENT: celery}.get(name)
    if theirs is not None:
        own = folder / f"celery{len(name)}"
        return stack.enter_context(theirs(own, model_s=model_s, workers=options.workers, submitters=options.submitters))
    server = None
    if name == "ours, PostgreSQL":
        server = postgresql()
        stack.callback(server.remove)
    own = folder / ("p" if server else "s")
    domino = stack.enter_context(declared(own, server))
    return stack.enter_context(ours(own, domino, model_s=model_s, workers=options.workers))


class _Results:
    def __init__(self) -> None:
        self.accepted: list[float] = []
        self.answered: list[float] = []
        self.latency_ms: list[float] = []
        self.straight_ms: list[float] = []
        self.cpu_ms: list[float] = []


def _compare(sides: dict[str, Queued], options: argparse.Namespace) -> dict[str, _Results]:
    results = {name: _Results() for name in sides}
    for side in sides.values():
        side.burst(options.count // 8, options.connections)
        side.one(20)
    for _ in range(options.rounds):
        for name, side in sides.items():
            wait_for_quiet()
            cpu = side.cpu_s()
            burst: Burst = side.burst(options.count, options.connections)
            cpu = side.cpu_s() - cpu + burst.own_cpu_s
            wait_for_quiet()
            latency, straight = statistics.median(side.one(200)), statistics.median(side.straight(200))
            one = results[name]
            one.straight_ms.append(straight * 1000)
            one.accepted.append(options.count / burst.accepted_s)
            one.answered.append(options.count / burst.whole_s)
            one.latency_ms.append(latency * 1000)
            one.cpu_ms.append(cpu / options.count * 1000)
            print(
                f"{name:20} accepted {one.accepted[-1]:7.0f}/s   answered {one.answered[-1]:7.0f}/s   "
                f"to the answer {one.latency_ms[-1]:6.2f} ms, straight {one.straight_ms[-1]:6.2f} ms   {one.cpu_ms[-1]:6.3f} ms of CPU each, the client's too",
                flush=True,
            )
    return results


def _table(results: dict[str, _Results]) -> str:
    lines = [f"\n{'medians of rounds':20} accepted/s   answered/s   to the answer, ms   straight, ms   CPU ms each"]
    for name, one in results.items():
        measured = (one.accepted, one.answered, one.latency_ms, one.straight_ms, one.cpu_ms)
        medians = [statistics.median(values) for values in measured]
        lines.append(
            f"{name:20} {medians[0]:10.0f} {medians[1]:12.0f} {medians[2]:19.2f} {medians[3]:14.2f} {medians[4]:13.3f}"
        )
    return "\n".join(lines)


def _verdict(results: dict[str, _Results]) -> int:
    """Return 0 where each of our sides accepts and answers at least as much as Celery over HTTP, and sooner."""
    worse = False
    for name in [name for name in results if name.startswith("ours")]:
        for other in [other for other in (_CELERY, _CLIENT) if other in results]:
            accepted, answered, sooner, straight = (
                statistics.median(getattr(results[name], what)) / statistics.median(getattr(results[other], what))
                for what in ("accepted", "answered", "latency_ms", "straight_ms")
            )
            print(f"\n{name}, {other} being 1: accepted {accepted:.2f}, answered {answered:.2f}, ", end="")
            if other == _CELERY:
                print(f"to the answer {sooner:.2f}")
                worse = worse or accepted < 1 or answered < 1 or sooner >= 1
            else:
                print(f"straight to the answer {straight:.2f}")
    return int(worse)


if __name__ == "__main__":
    main()
