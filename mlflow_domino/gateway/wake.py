"""How a dispatcher is told something: by a datagram, which may be lost; the queue and the inventory are what counts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

from mlflow_domino.home import write_text

__all__ = ["FINISH", "LOOK", "acknowledge", "follow", "hang_bell", "ring"]

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
