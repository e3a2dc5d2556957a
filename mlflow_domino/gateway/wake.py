"""How a dispatcher is told something: by a datagram, which may be lost; the queue and the inventory are what counts."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import time
from pathlib import Path

from mlflow_domino.home import write_text

__all__ = ["FINISH", "LOOK", "Waiter", "acknowledge", "follow", "hang_bell", "ring", "say_ended"]

#: Says that the inventory has changed.
LOOK = "look"
#: Has a dispatcher finish what runs, send nothing more, and end.
FINISH = signal.SIGUSR1
_LOOK_S = 0.005


def ring(path: str, word: str) -> bool:
    """Tell a dispatcher something; false where nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:
        speaking.setblocking(False)
        try:
            speaking.sendto(word.encode("ascii"), path)
        except BlockingIOError:
            pass  # it listens, and has much to hear
        except OSError:
            return False
    return True


def follow(path: str, generation: int, *, timeout_s: float) -> bool:
    """Return when the dispatcher, where there is one, sends nothing by an older inventory any more."""
    deadline = time.monotonic() + timeout_s
    while ring(path, LOOK):
        if _seen(path) >= generation:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True  # one that starts reads the inventory first


def acknowledge(path: str, generation: int) -> None:
    """Say that an inventory is followed."""
    write_text(Path(f"{path}-seen"), str(generation))


def _seen(path: str) -> int:
    try:
        return int(Path(f"{path}-seen").read_text("ascii"))
    except (OSError, ValueError):
        return -1


def hang_bell(path: str) -> socket.socket:
    """Return the socket on which a dispatcher hears; it takes the place of an earlier one's."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.setblocking(False)
    listening.bind(path)
    return listening


class Waiter:
    """Hears that a prediction has ended, where its dispatcher is on this machine; a `with` block's length.

    The name of its socket is Linux's own kind, which needs no file and goes with the process; elsewhere nothing is
    heard, and whoever waits looks again.
    """

    def __init__(self, prediction_id: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._prediction_id = prediction_id

    def __enter__(self) -> Waiter:
        with contextlib.suppress(OSError):  # two may wait for the same; the second one looks
            self._socket.bind(_name(self._prediction_id))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait(self, timeout_s: float) -> None:
        """Return when it may have ended, or the time is over."""
        self._socket.settimeout(timeout_s)
        with contextlib.suppress(OSError):
            self._socket.recv(1)


def say_ended(prediction_id: str) -> None:
    """Tell whoever waits for a prediction; mostly nobody does."""
    with contextlib.suppress(OSError):
        _speaking().sendto(b".", _name(prediction_id))


@functools.cache
def _speaking() -> socket.socket:
    speaking = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    speaking.setblocking(False)
    return speaking


def _name(prediction_id: str) -> str:
    return f"\0mlflow-domino-{prediction_id}"
