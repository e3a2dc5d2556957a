"""How the gateway's application wakes the dispatcher: a datagram, which may be lost; the queue is what counts."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["hang_bell", "ring"]


def ring(path: str, word: str) -> None:
    """Tell a dispatcher something; where nobody listens, or not fast enough, nothing happens."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaking:
        speaking.setblocking(False)
        speaking.sendto(word.encode("ascii"), path)


def hang_bell(path: str) -> socket.socket:
    """Return the socket on which a dispatcher hears; it takes the place of an earlier one's."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.setblocking(False)
    listening.bind(path)
    return listening
