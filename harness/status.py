"""status.json: what this replica is doing and why, replaced whole at each change."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import Any, Iterator

from .log import Redaction

__all__ = ["Status", "write_atomically"]

#: A traceback's end says what happened; its beginning is our own frames.
_DETAIL = 8000
#: In characters, of which one can be six in JSON's ASCII; most are one.
_LAST_WORDS = 1500


class Status:
    """Writer of a replica's status.

    Parameters
    ----------
    folder : str
        DOMINO_REPLICA_DIR.
    pid : int
        uWSGI's master.
    redaction : Redaction
        Takes the variables' values out of what is written.
    """

    def __init__(self, folder: str, pid: int, redaction: Redaction) -> None:
        self._path = os.path.join(folder, "status.json")
        self._lock = os.path.join(folder, "status.lock")
        self._pid = pid
        self._redaction = redaction

    def read(self) -> dict[str, Any]:
        """Return what was written last, by whichever process; empty where nothing was."""
        try:
            with open(self._path, encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def begin(self) -> None:
        """Write the first status of a start, which keeps in mind why the one before it failed."""
        before = self.read()
        notes = []
        if before.get("state") == "failed":
            notes.append("the start before this one failed: " + str(before.get("reason")))
        self._write("starting", notes=notes)

    def again(self) -> None:
        """Go back to where a start begins, and keep the notes."""
        with self.locked():
            self._write("starting", notes=self.read().get("notes", []))

    def move(self, state: str, *, load_time_s: float | None = None, note: str = "") -> None:
        """Go on to a state, unless this start has already failed or got there."""
        with self.locked():
            now = self.read()
            order = ["starting", "loading", "warming", "ready", "failed"]
            if now.get("pid") == self._pid and order.index(now["state"]) >= order.index(state):
                state = now["state"]
            notes = list(now.get("notes", ()))
            if note and note not in notes:
                notes.append(self._redaction(note))
            if load_time_s is None:
                load_time_s = now.get("load_time_s")
            self._write(state, notes=notes, load_time_s=load_time_s, reason=now.get("reason", ""), before=now)

    def fail(self, reason: str, detail: str = "") -> bool:
        """Say why this start failed; the first reason stands. Whether it was the first is returned."""
        with self.locked():
            now = self.read()
            if now.get("pid") == self._pid and now.get("state") in ("failed", "ready"):
                return False
            self._write("failed", reason=reason, detail=detail, notes=now.get("notes", []))
            self._tell_kubelet()
            return True

    def _tell_kubelet(self) -> None:
        """Leave the reason where Kubernetes keeps the last words of a container, of which it takes 4096 bytes."""
        path = os.environ.get("DOMINO_TERMINATION_LOG")
        if path:
            now = self.read()
            words = {"reason": now["reason"][:_LAST_WORDS], "detail": now["detail"][-_LAST_WORDS:]}
            with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as file:
                file.write(json.dumps(words))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of this replica's processes; the kernel lets it go when one dies."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, state: str, *, before: dict[str, Any] | None = None, **fields: Any) -> None:
        same = before is not None and before.get("state") == state and before.get("pid") == self._pid
        document = {
            "state": state,
            "reason": self._redaction(fields.get("reason") or ""),
            "detail": self._redaction(fields.get("detail") or (before or {}).get("detail") or "")[-_DETAIL:],
            "pid": self._pid,
            "since_ms": before["since_ms"] if before is not None and same else int(time.time() * 1000),
            "load_time_s": fields.get("load_time_s"),
            "notes": fields.get("notes", []),
        }
        write_atomically(self._path, json.dumps(document, indent=1).encode("utf-8"))


def write_atomically(path: str, content: bytes) -> None:
    """Replace a file whole; readers see the old content or the new."""
    beside = f"{path}.{os.getpid()}"
    with open(beside, "wb") as file:
        file.write(content)
    os.replace(beside, path)
