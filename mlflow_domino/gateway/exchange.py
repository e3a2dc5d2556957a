"""One HTTP exchange with a replica, in a loop of asyncio's: a request of one piece, and its answer.

Plain sockets and callbacks, since a dispatcher's own work is what a quick model waits for: streams and tasks of
asyncio's cost several times as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable

__all__ = ["Broken", "Done", "Exchange", "Unreached"]

#: An answer that is larger than any result may be; what is beyond is not read.
_ANSWER_LIMIT = 8 << 20
_HEAD_LIMIT = 1 << 16
_CONNECT_S = 5.0
_CHUNK = 1 << 16
#: A machine that is gone says nothing: after so long without a word from its kernel a connection is broken.
_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 25_000))


class Unreached(Exception):
    """No byte of the request reached the replica."""


class Broken(Exception):
    """The replica had the request, and no answer came."""


#: Gets status and body, or why there are none.
Done = Callable[[int, bytes, Unreached | Broken | None], object]


class Exchange:
    """A request that is under way; `done` is called once.

    Parameters
    ----------
    address : str
        Path of a Unix socket, or host:port of an IP address.
    request : bytes
        Head and body, of HTTP/1.0, so that the answer comes in one piece and the connection ends with it.
    timeout_s : float
        From now to the end of the answer.
    done : callable
    """

    __slots__ = ("_answer", "_done", "_loop", "_rest", "_socket", "_timer", "_whole")

    def __init__(self, address: str, request: bytes, timeout_s: float, done: Done) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = done
        self._rest = memoryview(request)
        self._answer = bytearray()
        self._whole = 0  # bytes of head and body, once the head says so
        self._timer: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._loop.call_soon(self._begin, address, timeout_s)

    def _begin(self, address: str, timeout_s: float) -> None:
        try:
            self._socket, target = _socket_for(address)
            self._socket.setblocking(False)
            error = self._socket.connect_ex(target)
        except (OSError, ValueError) as failed:
            self._end(error=Unreached(f"the replica cannot be reached: {failed}"))
            return
        if error not in (0, errno.EINPROGRESS):  # a Unix socket with a full queue says EAGAIN
            self._end(error=Unreached(f"the replica cannot be reached: {os.strerror(error)}"))
            return
        if error:
            self._timer = self._loop.call_later(min(_CONNECT_S, timeout_s), self._late, timeout_s)
            self._loop.add_writer(self._socket.fileno(), self._connected, timeout_s)
        else:
            self._timer = self._loop.call_later(timeout_s, self._late, timeout_s)
            self._write()

    def _connected(self, timeout_s: float) -> None:
        assert self._socket is not None
        self._loop.remove_writer(self._socket.fileno())
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._end(error=Unreached(f"the replica cannot be reached: {os.strerror(error)}"))
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(timeout_s, self._late, timeout_s)
        self._write()

    def _write(self) -> None:
        assert self._socket is not None
        try:
            self._rest = self._rest[self._socket.send(self._rest) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(error=Broken(f"the replica ended before it had answered ({error.strerror})"))
            return
        if self._rest:
            self._loop.add_writer(self._socket.fileno(), self._write)
            return
        self._loop.remove_writer(self._socket.fileno())
        self._loop.add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        assert self._socket is not None
        try:
            chunk = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error=Broken(f"the replica ended before it had answered ({error.strerror})"))
            return
        self._answer += chunk
        if not self._whole:
            self._read_head()
        size = len(self._answer)
        if chunk and not (self._whole and size >= self._whole) and size <= _ANSWER_LIMIT:
            return
        self._end()

    def _read_head(self) -> None:
        """Learn how long the answer is; without a word on that it ends with the connection."""
        end = self._answer.find(b"\r\n\r\n", 0, _HEAD_LIMIT)
        if end < 0:
            return
        head = bytes(self._answer[:end]).lower()
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            with contextlib.suppress(ValueError):
                self._whole = end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])

    def _late(self, timeout_s: float) -> None:
        if self._rest and not self._answer:
            self._end(error=Unreached("the replica could not be reached in time"))
        else:
            self._end(error=Broken(f"no answer came within {timeout_s:g} s"))

    def _end(self, error: Unreached | Broken | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            descriptor = self._socket.fileno()
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)
            self._socket.close()
        if error is not None:
            self._done(0, b"", error)
            return
        head, separator, body = bytes(self._answer).partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        cut_off = self._whole and len(self._answer) < min(self._whole, _ANSWER_LIMIT)
        if not separator or len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit() or cut_off:
            self._done(0, b"", Broken("the replica ended before it had answered"))
        else:
            self._done(int(words[1]), body, None)


def _socket_for(address: str) -> tuple[socket.socket, str | tuple[str, int]]:
    if address.startswith("/"):
        return socket.socket(socket.AF_UNIX), address
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    speaking = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    speaking.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _ALIVE:
        if hasattr(socket, name):
            speaking.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return speaking, (host, int(port))
