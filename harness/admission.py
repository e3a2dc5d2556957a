"""Who still comes in when a replica is to end: whoever waits already, and nobody else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from typing import Sequence

from .config import Config
from .leaving import waiting

__all__ = ["Admission"]

_SO_ATTACH_FILTER = 26
#: One instruction for the kernel: let nothing of a packet through.
_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)
_NETLINK_SOCK_DIAG, _BY_FAMILY, _REQUEST = 4, 20, 1
#: What is asked of a Unix socket, and the attribute that tells it: how long its queue is.
_SHOW_QUEUE, _QUEUE = 0x10, 4
_HEADER = struct.Struct("=IHHII")
_MESSAGE_SIZE, _ATTRIBUTE = 16, struct.Struct("=HH")


class Admission:
    """The door of a replica.

    Parameters
    ----------
    config : Config
    listening : sequence of socket.socket
        What uWSGI listens on.
    """

    def __init__(self, config: Config, listening: Sequence[socket.socket]) -> None:
        self._listening = listening
        self._paths = [config.socket, config.seldon_socket] if config.socket else []
        self._ports = [port for port in (config.port, config.seldon_port if config.is_async else 0) if port]

    def close(self) -> None:
        """Have the kernel overlook everybody who would connect from now on.

        Closed, the sockets would take along those who wait to be accepted. Where a kernel has no such filter newcomers
        wait with the others.
        """
        program = ctypes.create_string_buffer(_NOTHING, len(_NOTHING))
        for one in self._listening:
            if one.family == socket.AF_INET:
                with contextlib.suppress(OSError):
                    option = struct.pack("HP", 1, ctypes.addressof(program))
                    one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
        for path in self._paths:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def waiting(self) -> int:
        """Return how many connections nobody has accepted yet."""
        unix = [one for one in self._listening if one.family == socket.AF_UNIX]
        return waiting(self._ports) + sum(map(_queue_of, unix))


def _queue_of(listening: socket.socket) -> int:
    """Return how many wait at a Unix socket, of which no file of the kernel's tells; 0 where it does not say."""
    inode = os.fstat(listening.fileno()).st_ino & 0xFFFFFFFF
    asked = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, _SHOW_QUEUE, 0xFFFFFFFF, 0xFFFFFFFF)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.settimeout(1)
            kernel.send(_HEADER.pack(_HEADER.size + len(asked), _BY_FAMILY, _REQUEST, 1, 0) + asked)
            answer = kernel.recv(4096)
    except OSError:
        return 0
    size, kind = _HEADER.unpack_from(answer)[:2]
    at = _HEADER.size + _MESSAGE_SIZE
    while kind == _BY_FAMILY and at + _ATTRIBUTE.size <= size:
        length, attribute = _ATTRIBUTE.unpack_from(answer, at)
        if attribute == _QUEUE:
            return int(struct.unpack_from("=I", answer, at + _ATTRIBUTE.size)[0])
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return 0
