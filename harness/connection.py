"""The caller's connection, as far as uWSGI shows it."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import Callable

from .tracker import Ticket

__all__ = ["Connection", "NoConnection", "before_exit", "copy_of", "keep", "send_and_close"]

_LONGEST_S = 2.0
_MOST = 64 << 20
#: How long a caller may take nothing of a long answer.
_STALLED_MS = 60_000
#: C has their addresses only.
_CALLBACKS: list[object] = []


class NoConnection:
    """Outside uWSGI: nothing is known, and nothing needs to be."""

    def descriptor(self) -> int | None:
        return None

    def discard_chunks(self) -> None:
        pass

    def others_wait(self) -> bool:
        """Whether another caller's connection waits to be accepted."""
        return False


class Connection(NoConnection):
    """uWSGI's current request's."""

    def __init__(self) -> None:
        import uwsgi

        self._listening = list(uwsgi.sockets)

    def others_wait(self) -> bool:
        return bool(select.select(self._listening, (), (), 0)[0])

    def descriptor(self) -> int | None:
        """Return the descriptor of the connection that this thread serves."""
        import uwsgi

        return uwsgi.connection_fd()

    def discard_chunks(self) -> None:
        """Read a chunked body to its end, so that its sender is still there when the refusal comes."""
        import uwsgi

        deadline, left = time.monotonic() + _LONGEST_S, _MOST
        while left > 0 and time.monotonic() < deadline:
            try:
                chunk = uwsgi.chunked_read(1)
            except OSError:
                return
            if not chunk:
                return
            left -= len(chunk)


def keep(descriptor: int) -> int:
    """Return a descriptor of the same connection that stays when uWSGI closes its own."""
    own = os.dup(descriptor)
    os.set_blocking(own, False)
    return own


def before_exit(function: Callable[[], None]) -> None:
    """Call a function when the process ends by C's `exit`, before what was registered so far."""
    import ctypes

    def call(_: object) -> None:
        with contextlib.suppress(Exception):
            function()

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(call)
    _CALLBACKS.append(callback)
    ctypes.CDLL(None).__cxa_atexit(callback, None, None)


def copy_of(ticket: Ticket) -> int | None:
    """Return a descriptor of our own of a request's connection; None where it is not, or no longer, known."""
    while True:
        descriptor = ticket.descriptor
        if descriptor is None:
            return None
        try:
            own = os.dup(descriptor)
        except OSError:
            return None
        if ticket.descriptor == descriptor:
            return own
        os.close(own)  # it was kept meanwhile, and its old number may be another caller's


def send_and_close(descriptor: int, answer: bytes, sent: Callable[[], None]) -> None:
    """Send an answer without waiting for its reader: a thread waits for one that takes it slowly."""
    try:
        written = os.write(descriptor, answer)
    except BlockingIOError:
        written = 0
    except OSError:
        written = len(answer)  # the caller has gone
    if written < len(answer):
        rest = memoryview(answer)[written:]
        threading.Thread(target=_send_slowly, args=(descriptor, rest, sent), daemon=True).start()
        return
    os.close(descriptor)
    sent()


def _send_slowly(descriptor: int, rest: memoryview, sent: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    with contextlib.suppress(OSError):
        while rest and poll.poll(_STALLED_MS):
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(descriptor, rest) :]
    os.close(descriptor)
    sent()
