"""The way from seldon-core's microservice to the harness beside it."""

from __future__ import annotations

import re
import socket
import time
from typing import Mapping, Tuple

from .config import Config
from .errors import Lost, NotReady, Overdue, Overloaded

__all__ = ["Relay"]

#: The harness itself says that the time is over; nobody waits for it much longer.
_GRACE_S = 5.0
_CHUNK = 1 << 16
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)\r\n", re.IGNORECASE)


class Relay:
    """Sends requests to the harness, each on a connection of its own.

    Parameters
    ----------
    config : Config
    """

    def __init__(self, config: Config) -> None:
        self._socket = config.socket
        self._port = config.port or 8080

    def post(self, path: str, body: bytes, headers: Mapping[str, str], within_s: float) -> Tuple[int, bytes]:
        """Return status and body of the harness's answer.

        Raises
        ------
        NotReady
            There is no harness, or it did not get the whole request.
        Lost
            Its worker ended before it answered.
        Overloaded
            As many requests wait as may.
        Overdue
            It did not answer in time.
        """
        # Of version 1.0 and by hand: uWSGI answers once, whole, and then the connection ends. What the standard library
        # does beyond that costs a third of all that the microservice does.
        lines = [f"POST {path} HTTP/1.0", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        request = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
        deadline = time.monotonic() + within_s + _GRACE_S
        try:
            with self._sent(request, deadline) as connection:
                return _parted(_received(connection, deadline))
        except socket.timeout:
            raise Overdue("the time limit was over, and the replica did not answer") from None
        except (OSError, ValueError):
            raise Lost("the process ended that was to answer") from None

    def _sent(self, request: bytes, deadline: float) -> socket.socket:
        """Return a connection by which the harness has got a request."""
        try:
            connection = self._connected(deadline)
            try:
                connection.sendall(request)
            except BaseException:
                connection.close()
                raise
        except BlockingIOError:
            raise Overloaded("as many requests as may wait for the replica") from None
        except socket.timeout:
            raise
        except OSError:
            raise NotReady("the model's processes take no requests now") from None
        return connection

    def _connected(self, deadline: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX if self._socket else socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.settimeout(deadline - time.monotonic())
            connection.connect(self._socket or ("127.0.0.1", self._port))
        except BaseException:
            connection.close()
            raise
        return connection


def _received(connection: socket.socket, deadline: float) -> bytes:
    chunks = []
    while True:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(_CHUNK)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def _parted(answer: bytes) -> Tuple[int, bytes]:
    """Part an answer into status and body; ValueError where it is none, or was cut off."""
    head, end, body = answer.partition(b"\r\n\r\n")
    status, length = _STATUS.match(head), _LENGTH.search(head + b"\r\n")
    if not end or status is None or length is None or len(body) != int(length.group(1)):
        raise ValueError("no whole answer")
    return int(status.group(1)), body
