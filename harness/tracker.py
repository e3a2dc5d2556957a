"""The requests that a worker is at: their ids, their deadlines, and their places in the shared slots."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from typing import Any, Callable, Mapping

from .slots import Slots

__all__ = ["Ticket", "Tracker", "new_request_id"]

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_TO_LETTER = bytes(_LETTERS[byte % 36] for byte in range(256))


_REQUEST_ID = re.compile(r"[A-Z0-9]{16}")


def new_request_id() -> str:
    """Return 16 random characters of A-Z and 0-9, the shape of Domino's request ids."""
    return os.urandom(16).translate(_TO_LETTER).decode("ascii")


class Ticket:
    """One request from its first byte in Python to the last byte of its answer.

    Attributes
    ----------
    request_id : str
    started, deadline : float
        Of ``time.monotonic()``.
    slot : int or None
        Its place in the shared slots.
    descriptor : int or None
        The caller's connection.
    thread : int
        The thread that serves it.
    """

    __slots__ = ("_answer", "deadline", "descriptor", "request_id", "slot", "started", "thread")

    def __init__(self, request_id: str, started: float, deadline: float, slot: int | None) -> None:
        self.request_id = request_id
        self.started = started
        self.deadline = deadline
        self.slot = slot
        self.descriptor: int | None = None
        self.thread = threading.get_ident()
        self._answer = threading.Lock()

    def claim(self) -> bool:
        """Take the right to answer; there is one answer, the model's or the word that its time is over."""
        return self._answer.acquire(False)


class Tracker:
    """Gives each request a ticket, and each ticket one of the worker's slots.

    Parameters
    ----------
    timeout_s : float
        Time limit of a request.
    slots : Slots or None
        None outside uWSGI.
    worker : int
        This worker's number.
    leave : callable or None
        Called in the first request after this worker was asked to retire.
    longest_s : float
        Time limit of those that may name a deadline beyond `timeout_s`.
    may_take_longer : callable or None
        Tells by its Authorization whether a request is one of them; None where there are none.
    """

    def __init__(
        self,
        timeout_s: float,
        *,
        slots: Slots | None = None,
        worker: int = 1,
        leave: Callable[[], None] | None = None,
        longest_s: float = 0.0,
        may_take_longer: Callable[[str], bool] | None = None,
    ) -> None:
        self._leave = leave
        self._longest_s = longest_s
        self._may_take_longer = may_take_longer
        self._timeout_s = timeout_s
        self._slots = slots
        self._worker = worker
        self._free: deque[int] = deque(range(slots.threads if slots is not None else 0))
        self._total = 0
        #: By slot.
        self.running: dict[int, Ticket] = {}

    def begin(self, environ: Mapping[str, Any]) -> Ticket:
        now = time.monotonic()
        told = environ.get("HTTP_X_REQUEST_ID", "")
        # The gateway's, where there is one: its own answers and the replica's log then speak of the same request.
        request_id = told if _REQUEST_ID.fullmatch(told) else new_request_id()
        ticket = Ticket(request_id, now, self._deadline(now, environ), None)
        if self._slots is not None:
            if self._leave is not None and self._slots.is_asked_to_retire(self._worker):
                self._leave()
            try:
                ticket.slot = self._free.popleft()
            except IndexError:  # more threads than uWSGI was told of: not watched, still served
                return ticket
            self._slots.take(self._worker, ticket.slot, ticket.request_id, ticket.deadline)
            self.running[ticket.slot] = ticket
        return ticket

    def overdue(self) -> list[Ticket]:
        """Return the requests whose time is over."""
        now = time.monotonic()
        return [ticket for ticket in list(self.running.values()) if now > ticket.deadline]

    def end(self, ticket: Ticket) -> None:
        if self._slots is not None and ticket.slot is not None:
            self.running.pop(ticket.slot, None)
            self._slots.free(self._worker, ticket.slot)
            self._free.append(ticket.slot)
            self._total += 1
            self._slots.count_request(self._worker, self._total)
            ticket.slot = None

    def _deadline(self, now: float, environ: Mapping[str, Any]) -> float:
        """Take the gateway's deadline where it is the earlier one: its clock started when the caller's request came."""
        latest = now + self._timeout_s
        told = environ.get("HTTP_X_DOMINO_DEADLINE_MS")
        if not told:
            return latest
        if self._may_take_longer is not None and self._may_take_longer(environ.get("HTTP_AUTHORIZATION", "")):
            latest = now + self._longest_s
        try:
            return min(latest, now + int(told) / 1000.0 - time.time())
        except (ValueError, OverflowError):
            return latest
