"""The way from seldon-core's microservice to the harness beside it."""

from __future__ import annotations

import contextlib
import http.client
import socket
from typing import Mapping, Tuple

from .config import Config
from .errors import NotReady, Overdue, Overloaded

__all__ = ["Relay"]

#: The harness itself says that the time is over; nobody waits for it much longer.
_GRACE_S = 5.0


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
            There is no harness, or its worker ended before it answered.
        Overloaded
            As many requests wait as may.
        Overdue
            It did not answer in time.
        """
        connection = self._connection(within_s + _GRACE_S)
        with contextlib.closing(connection):
            try:
                connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
                response = connection.getresponse()
                return response.status, response.read()
            except BlockingIOError:
                raise Overloaded("as many requests as may wait for the replica") from None
            except socket.timeout:
                raise Overdue("the time limit was over, and the replica did not answer") from None
            except (OSError, http.client.HTTPException):
                raise NotReady("the replica ended, or was not there, before it answered") from None

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._socket:
            return _UnixConnection(self._socket, timeout_s)
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout_s)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("harness", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
