"""Calls of webhooks: signed as MLflow signs its own, and to no address of this network unless that is allowed."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

from mlflow_domino import __version__
from mlflow_domino.queue.prediction import Delivery

__all__ = ["Told", "is_public", "tell"]

_CONNECT_S = 10.0
_WHOLE_S = 30.0
_ANSWER_LIMIT = 1 << 16
#: What a network with NAT64 reaches IPv4 by: the last four bytes are the address.
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Told:
    """What became of a call.

    Attributes
    ----------
    reason : str
        Why it failed; empty where it succeeded.
    again : bool
        Whether trying again may help.
    """

    reason: str = ""
    again: bool = False


class _Forbidden(Exception):
    """It leads where it must not."""


def tell(delivery: Delivery, *, private: bool, clock_s: float | None = None) -> Told:
    """Call a webhook once.

    Parameters
    ----------
    private : bool
        Whether it may lead to private addresses.
    clock_s : float or None
        The time that is signed; None: now.
    """
    body = _body(delivery)
    headers = _headers(delivery, body, int(time.time() if clock_s is None else clock_s))
    parts = urllib.parse.urlsplit(delivery.url)
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    try:
        with _connection(parts, private=private) as connection:
            connection.request("POST", target, body, headers)
            response = connection.getresponse()
            response.read(_ANSWER_LIMIT)
            status = response.status
    except _Forbidden as error:
        return Told(str(error))
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Told(f"it could not be called: {type(error).__name__}: {error}", again=True)
    if 200 <= status < 300:
        return Told()
    # Where it leads elsewhere is not followed: that address was not checked, nor asked for.
    return Told(f"it answered {status}", again=status == 429 or status >= 500)


def _body(delivery: Delivery) -> bytes:
    ended = datetime.datetime.fromtimestamp(delivery.ended_ms / 1000, tz=datetime.timezone.utc)
    document = {
        "entity": "async_prediction",
        "action": delivery.data["status"],
        "timestamp": ended.isoformat(),
        "data": delivery.data,
    }
    return json.dumps(document).encode()


def _headers(delivery: Delivery, body: bytes, at_s: int) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"mlflow-domino/{__version__}",
        "Connection": "close",
        "X-MLflow-Delivery-Id": delivery.id,
        "X-MLflow-Timestamp": str(at_s),
    }
    if delivery.secret:
        signed = f"{delivery.id}.{at_s}.".encode() + body
        digest = hmac.new(delivery.secret.encode("utf-8", "surrogatepass"), signed, hashlib.sha256).digest()
        headers["X-MLflow-Signature"] = "v1," + base64.b64encode(digest).decode()
    return headers


@contextlib.contextmanager
def _connection(parts: urllib.parse.SplitResult, *, private: bool) -> Iterator[http.client.HTTPConnection]:
    """Connect to an address that was checked, under the name that was asked for; for half a minute at most."""
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    address = _resolve(host, port, private=private)
    connection = http.client.HTTPConnection(host, port, timeout=_CONNECT_S)
    with socket.create_connection((address, port), timeout=_CONNECT_S) as plain, plain.dup() as own:
        late = threading.Timer(_WHOLE_S, _shut, [own])  # TLS takes the other one's descriptor over
        late.daemon = True
        late.start()
        try:
            connection.sock = _context().wrap_socket(plain, server_hostname=host) if secure else plain
            yield connection
        finally:
            late.cancel()
            connection.close()


def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _resolve(host: str, port: int, *, private: bool) -> str:
    """Return one address of a name, of which none leads into this network."""
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not private and not all(is_public(address) for address in found):
        raise _Forbidden(f"{host} has a private address; webhook_private of the data plane allows that")
    return found[0]


def is_public(text: str) -> bool:
    """Whether an address leads out of this network; ValueError for what is no address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address in _TRANSLATED:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        elif address.is_reserved or address.is_site_local:
            return False
        else:
            address = address.sixtofour or address
    return address.is_global and not address.is_multicast
