"""What a replica says of itself: the status file, the slots and the token acknowledgements in its folder.

The harness writes them; see ``harness/status.py`` and ``harness/slots.py`` for the formats.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlflow_domino.data_planes.base import Observation
from mlflow_domino.home import read_json
from mlflow_domino.models import Status, Version

__all__ = ["ReplicaState", "acknowledged", "in_flight", "read", "summary"]


@dataclass(frozen=True)
class ReplicaState:
    """One replica at one moment.

    Attributes
    ----------
    state : str
        ``starting``, ``loading``, ``warming``, ``ready`` or ``failed``; ``absent`` where it has said nothing yet, and
        ``lost`` where it was ready and nobody listens on its socket.
    reason, detail : str
        For a person; the end of a traceback.
    since_ms : int
        When it entered the state, in milliseconds since the epoch.
    pid : int
        Of the replica that says so; 0 where somebody else does, such as whoever could not start it.
    """

    number: int
    state: str
    reason: str = ""
    detail: str = ""
    since_ms: int = 0
    pid: int = 0


def read(number: int, folder: Path, sockets: Sequence[Path]) -> ReplicaState:
    """Return what the replica is, from its status file and from whether its sockets are listened on."""
    try:
        document = read_json(folder / "status.json")
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return ReplicaState(number, "absent")
    state = str(document.get("state"))
    if not _lives(document.get("pid")) and state != "failed":
        return ReplicaState(number, "lost", "it ended and is being started again")
    if state == "ready" and not all(map(_listening, sockets)):
        return ReplicaState(number, "lost", "it ended and is being started again")
    return ReplicaState(
        number,
        state,
        str(document.get("reason", "")) or _earlier(document.get("notes")),
        str(document.get("detail", "")),
        int(document.get("since_ms", 0)),
        int(document.get("pid") or 0),
    )


def _earlier(notes: object) -> str:
    """Return what the harness noted of the start before, which failed: the reason outlives the next attempt."""
    told = notes if isinstance(notes, list) else []
    return next((str(note) for note in told if str(note).startswith("the start before")), "")


def _lives(pid: object) -> bool:
    try:
        return isinstance(pid, int) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _listening(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(address))
        except BlockingIOError:
            return True  # its queue is full: busy, not dead
        except OSError:
            return False
    return True


def summary(version: Version, states: Sequence[ReplicaState]) -> Observation:
    """Say in one status what the replicas of a version that should run are."""
    ready = [s for s in states if s.state == "ready"]
    failed = [s for s in states if s.state == "failed"]
    waiting = [s for s in states if s.state not in ("ready", "failed")]
    if len(ready) == len(states):
        return Observation(Status.RUNNING, ready=len(ready))
    reason = "; ".join(f"replica {s.number}: {s.reason or s.state}" for s in [*failed, *waiting])
    if ready:
        return Observation(
            Status.RUNNING, f"{len(ready)} of {len(states)} replicas ready; {reason}", len(ready), len(failed)
        )
    if failed:
        return Observation(Status.FAILED, failed[0].reason, 0, len(failed))
    if any(_overdue(s, version.settings.ready_within_s) for s in waiting):
        return Observation(Status.STALLED, reason)
    return Observation(Status.STARTING, reason)


def _overdue(state: ReplicaState, timeout_s: float) -> bool:
    return state.since_ms > 0 and time.time() * 1000 - state.since_ms > timeout_s * 1000


def in_flight(folder: Path) -> int:
    """Count the requests that a replica works on at this moment; 0 where there is no replica."""
    try:
        data = (folder / "slots").read_bytes()
        workers, threads = struct.unpack_from("<II", data, 8)
        starts = range(64 + 64 * workers, 64 + 64 * workers * (1 + threads), 64)
        return sum(struct.unpack_from("<d", data, at)[0] != 0 for at in starts)
    except (FileNotFoundError, struct.error):
        return 0


def acknowledged(folder: Path, tokens: bytes, workers: int) -> bool:
    """Tell whether every worker of a replica uses exactly this token file."""
    wanted = hashlib.sha256(tokens).hexdigest()
    for worker in range(1, workers + 1):
        with contextlib.suppress(FileNotFoundError):
            if (folder / f"tokens.{worker}").read_text().strip() == wanted:
                continue
        return False
    return True
