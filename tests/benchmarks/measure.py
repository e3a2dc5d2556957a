"""Rounds that take turns, so that a machine whose speed drifts slows all sides, and their medians."""

from __future__ import annotations

import contextlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.benchmarks.generator import Outcome, load
from tests.benchmarks.servers import Side

__all__ = ["Results", "compare", "scratch", "wait_for_quiet"]

#: A measurement beside which others took more of the machine than this is made again, a few times.
_DISTURBED = 0.1
_TRIES = 4


@dataclass
class Measured:
    """One side in one round."""

    outcome: Outcome
    server_cpu_ms: float
    others: float

    def __str__(self) -> str:
        return (
            f"{self.outcome}   server {self.server_cpu_ms:6.3f} ms of CPU a request, "
            f"generator {self.outcome.own_cpu_ms:5.3f}; {self.others:4.0%} of the machine was busy otherwise"
        )


@dataclass
class Results:
    """What was measured, by side."""

    rounds: dict[str, list[Measured]] = field(default_factory=dict)

    def add(self, side: str, measured: Measured) -> None:
        self.rounds.setdefault(side, []).append(measured)

    def rate(self, side: str) -> float:
        return statistics.median(m.outcome.rate for m in self.rounds[side])

    def median_ms(self, side: str) -> float:
        return statistics.median(m.outcome.median_ms for m in self.rounds[side])

    def p99_ms(self, side: str) -> float:
        return statistics.median(m.outcome.quantile_ms(0.99) for m in self.rounds[side])

    def cpu_ms(self, side: str) -> float:
        return statistics.median(m.server_cpu_ms for m in self.rounds[side])

    def failed(self, side: str) -> int:
        return sum(m.outcome.failed for m in self.rounds[side])

    @property
    def all_failed(self) -> int:
        return sum(map(self.failed, self.rounds))

    def table(self, base: str) -> str:
        """Return the medians, and the ratios to one side."""
        lines = [f"{'medians of rounds':30} requests/s   times     p99 ms   CPU ms/request   failed"]
        for side in self.rounds:
            ratio = self.rate(side) / self.rate(base) if base in self.rounds else float("nan")
            lines.append(
                f"{side:30} {self.rate(side):10.0f} {ratio:7.2f} {self.p99_ms(side):10.2f} "
                f"{self.cpu_ms(side):16.3f} {self.failed(side):8}"
            )
        return "\n".join(lines)


def compare(sides: Mapping[str, Side], *, connections: int, rounds: int, seconds: float) -> Results:
    """Load each side in turn, again and again; the first round only warms up.

    Parameters
    ----------
    sides : mapping of str to Side
    connections, rounds : int
    seconds : float
        For each side in each round.
    """
    results = Results()
    for side in sides.values():
        with _alone(side, sides):
            load(side.target, side.body, holds=side.holds, connections=connections, seconds=min(seconds, 2.0))
    for _ in range(rounds):
        for name, side in sides.items():
            with _alone(side, sides):
                measured = _undisturbed(side, connections, seconds)
            results.add(name, measured)
            print(f"{name:30} {measured}", flush=True)
            if measured.outcome.failed:
                print(f"{'':30} {dict(measured.outcome.statuses)}", flush=True)
    return results


@contextlib.contextmanager
def _alone(side: Side, sides: Mapping[str, Side]) -> Iterator[None]:
    """Suspend the others that are restless."""
    others = [one for other in sides.values() if other.restless and other is not side for one in other.processes()]
    for process in others:
        process.suspend()
    try:
        yield
    finally:
        for process in others:
            process.resume()


def _undisturbed(side: Side, connections: int, seconds: float) -> Measured:
    """Return the least disturbed of a few measurements, failures of the others included."""
    tries: list[Measured] = []
    while len(tries) < _TRIES and (not tries or tries[-1].others > _DISTURBED):
        wait_for_quiet()
        tries.append(_measure(side, connections, seconds))
    best = min(tries, key=lambda measured: measured.others)
    for measured in tries:
        if measured is not best:
            best.outcome.statuses.update({k: n for k, n in measured.outcome.statuses.items() if k != "200"})
    return best


def _measure(side: Side, connections: int, seconds: float) -> Measured:
    busy, served, begun = _busy_s(), side.cpu_s(), time.perf_counter()
    outcome = load(side.target, side.body, holds=side.holds, connections=connections, seconds=seconds)
    served = side.cpu_s() - served
    answers = max(1, sum(outcome.statuses.values()))
    others = _busy_s() - busy - served - outcome.own_cpu_ms * answers / 1000
    machine = (time.perf_counter() - begun) * (psutil.cpu_count() or 1)
    return Measured(outcome, 1000 * served / answers, max(0.0, others) / machine)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def wait_for_quiet() -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and psutil.cpu_percent(0.3) > 10:
        pass


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder that is gone afterwards; its name is short, as sockets' paths must be.

    SIGTERM unwinds what is inside too, so that servers are ended whoever ends the benchmark.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        yield Path(name)
        for path in Path(name).rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)  # sources are kept read-only
