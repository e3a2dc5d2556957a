"""Waits until a replica may be told to end: what Kubernetes runs first (`preStop`), with two numbers of seconds.

uWSGI finishes what its workers are at, and drops the connections that still wait for one. So the signal must not come
before those are gone: first the route moves, then the queue runs dry.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Iterable

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
if __package__ in (None, ""):
    sys.path.insert(0, os.path.dirname(_PACKAGE))
    __package__ = os.path.basename(_PACKAGE)
    __import__(__package__)

from .slots import Slots  # noqa: E402 - importable from here on

__all__ = ["leave", "waiting"]

_LOOK_S = 0.1
#: A request is seen in the queue or at a worker, and for a moment between them at neither.
_IDLE_LOOKS = 5
_LISTENS = "0A"


def leave(move_s: float, limit_s: float) -> bool:
    """Wait for the route to move, then until nothing is in flight; false when the time was over before."""
    deadline = time.monotonic() + limit_s
    time.sleep(min(move_s, limit_s))
    looks = 0
    while looks < _IDLE_LOOKS:
        if time.monotonic() >= deadline:
            return False
        looks = 0 if _busy() else looks + 1
        time.sleep(_LOOK_S)
    return True


def _busy() -> bool:
    ports = [int(os.environ.get(name) or 0) for name in ("DOMINO_PORT", "DOMINO_SELDON_PORT")]
    if waiting(ports):
        return True
    try:
        slots = Slots(os.path.join(os.environ["DOMINO_REPLICA_DIR"], "slots"))
    except (OSError, KeyError, ValueError):
        return False  # it never came so far
    try:
        return slots.count_in_flight() > 0
    finally:
        slots.close()


def waiting(ports: Iterable[int], table: str = "/proc/net/tcp") -> int:
    """Return how many connections to some ports of this machine, or pod, nobody has accepted yet."""
    wanted = {f"{port:04X}" for port in ports if port}
    try:
        with open(table, encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
    except OSError:
        return 0
    # Of a socket that listens, the kernel shows the length of its queue where others have bytes to read.
    return sum(int(row[4].partition(":")[2], 16) for row in rows if row[3] == _LISTENS and row[1][-4:] in wanted)


if __name__ == "__main__":
    leave(float(sys.argv[1]), float(sys.argv[2]))
