"""A closed-loop HTTP/1.1 load generator: so many connections, each sending its next request when it has its answer.

Raw sockets in one epoll loop of one process, since on a small machine the generator's own cost is the error of the
measurement. It understands what it needs: a status line, Content-Length or chunked bodies, and closed connections.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What came back in the measured time."""

    seconds: float
    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Successful answers a second."""
        return self.statuses["200"] / self.seconds

    @property
    def failed(self) -> int:
        return sum(self.statuses.values()) - self.statuses["200"]

    def quantile_ms(self, q: float) -> float:
        ordered = sorted(self.latencies_s) or [float("nan")]
        return 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    def __str__(self) -> str:
        median = 1000 * statistics.median(self.latencies_s) if self.latencies_s else float("nan")
        return (
            f"{self.rate:8.0f} requests/s   median {median:7.2f} ms   p99 {self.quantile_ms(0.99):7.2f} ms   "
            f"failed {self.failed}"
        )


class _Connection:
    def __init__(self, address: tuple[str, int] | str) -> None:
        self.address = address
        self.socket: socket.socket | None = None
        self.begun = 0.0
        self.received = b""

    def open(self) -> socket.socket:
        if isinstance(self.address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(self.address)
        else:
            self.socket = socket.create_connection(self.address)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.socket


def run(
    url: str, body: object, *, headers: dict[str, str], connections: int, seconds: float, unix: str = ""
) -> Outcome:
    """Send the same body over and over for so many seconds, over TCP, or over the Unix socket `unix`."""
    parts = urllib.parse.urlsplit(url)
    payload = json.dumps(body).encode()
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json",
             f"Content-Length: {len(payload)}", *(f"{k}: {v}" for k, v in headers.items())]  # fmt: skip
    request = "\r\n".join(lines).encode() + b"\r\n\r\n" + payload
    address = unix or (parts.hostname or "127.0.0.1", parts.port or 80)
    outcome = Outcome(seconds)
    selector = selectors.DefaultSelector()
    begun = time.perf_counter()
    for _ in range(connections):
        _send(_Connection(address), request, selector)
    while selector.get_map() and (now := time.perf_counter()) < begun + seconds:
        for key, _events in selector.select(timeout=0.1):
            _receive(key.data, request, selector, outcome)
    outcome.seconds = now - begun
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]
    selector.close()
    return outcome


def _send(connection: _Connection, request: bytes, selector: selectors.BaseSelector) -> None:
    if connection.socket is None:
        selector.register(connection.open(), selectors.EVENT_READ, connection)
    assert connection.socket is not None
    connection.received = b""
    connection.begun = time.perf_counter()
    connection.socket.sendall(request)


def _receive(connection: _Connection, request: bytes, selector: selectors.BaseSelector, outcome: Outcome) -> None:
    assert connection.socket is not None
    try:
        chunk = connection.socket.recv(65536)
    except OSError:
        chunk = b""
    connection.received += chunk
    length = _complete(connection.received)
    ended = not chunk or (length and b"\r\nconnection: close" in connection.received[:2000].lower())
    if not length and chunk:
        return
    if length or (connection.received.startswith(b"HTTP/") and b"\r\n\r\n" in connection.received):
        outcome.statuses[connection.received[9:12].decode()] += 1
        outcome.latencies_s.append(time.perf_counter() - connection.begun)
    else:
        outcome.statuses["closed"] += 1
    if ended:
        selector.unregister(connection.socket)
        connection.socket.close()
        connection.socket = None
    _send(connection, request, selector)


def _complete(data: bytes) -> bool:
    """Whether a whole answer with a length is there."""
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return False
    lowered = head.lower()
    if b"transfer-encoding: chunked" in lowered:
        return rest.endswith(b"0\r\n\r\n")
    _, found, tail = lowered.partition(b"content-length:")
    return bool(found) and len(rest) >= int(tail.split(b"\r\n", 1)[0])
