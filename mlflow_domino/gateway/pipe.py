"""HTTP to what listens on a Unix socket (or, in containers, on host:port): Envoy's admin interface, and replicas."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping

__all__ = ["fetch"]


class _PipeConnection(http.client.HTTPConnection):
    def __init__(self, path: str, *, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)


def fetch(
    address: str, target: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, timeout_s: float = 2.0
) -> tuple[int, bytes]:
    """Send one request without a body.

    Parameters
    ----------
    address : str
        Path of a Unix socket, or host:port.
    target : str
        Path and query.
    method, headers
        Of the request.
    timeout_s : float
        Of connecting and of each read.

    Returns
    -------
    tuple of int and bytes
        Status and body of the answer.

    Raises
    ------
    OSError
        Also for an answer that is no HTTP.
    """
    if address.startswith("/"):
        connection: http.client.HTTPConnection = _PipeConnection(address, timeout_s=timeout_s)
    else:
        connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request(method, target, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise OSError(f"{address} did not answer in HTTP: {error!r}") from error
    finally:
        connection.close()
