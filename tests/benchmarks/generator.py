"""An HTTP/1.1 load generator: so many connections, each sending its next request when it has its answer, or at a rate.

Raw sockets in one epoll loop of one process, since on a small machine the generator's own cost is the error of the
measurement (`Outcome.own_cpu_ms` tells it). It understands what it needs: a status line, Content-Length or chunked
bodies, and closed connections. An answer is a success when it is a 200 and holds the bytes that a right one must hold.
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat

#: How long what is under way at the end may take.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Target:
    """Where requests go, and how one looks.

    Attributes
    ----------
    address : str or (str, int)
        A Unix socket's path, or a host and a port.
    path : str
    headers : mapping
        Beside those that every request has.
    closes : bool
        Whether the server closes each connection after its answer, as uWSGI's plain HTTP does.
    """

    address: str | tuple[str, int]
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    closes: bool = False

    def request(self, body: object) -> bytes:
        payload = json.dumps(body, separators=(",", ":")).encode()
        headers = {
            "Host": "localhost",
            "Content-Type": "application/json",
            "Content-Length": str(len(payload)),
            **self.headers,
        }
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload

    def connect(self) -> socket.socket:
        if isinstance(self.address, str):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self.address)
            return connection
        connection = socket.create_connection(self.address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@dataclass
class Outcome:
    """What came back in the measured time.

    Attributes
    ----------
    statuses : Counter of str
        By status; ``wrong`` for a 200 without what a right answer holds, ``closed`` for a connection that ended,
        ``lost`` for an answer that had not come `_PATIENCE_S` after the end.
    own_cpu_ms : float
        The generator's processor time for one request.
    """

    seconds: float
    statuses: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    own_cpu_ms: float = 0.0

    @property
    def rate(self) -> float:
        """Successful answers a second."""
        return self.statuses["200"] / self.seconds

    @property
    def failed(self) -> int:
        return sum(self.statuses.values()) - self.statuses["200"]

    @property
    def median_ms(self) -> float:
        return 1000 * statistics.median(self.latencies_s) if self.latencies_s else float("nan")

    def quantile_ms(self, q: float) -> float:
        ordered = sorted(self.latencies_s) or [float("nan")]
        return 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    def __str__(self) -> str:
        return (
            f"{self.rate:8.0f} requests/s   median {self.median_ms:7.2f} ms   p99 {self.quantile_ms(0.99):7.2f} ms   "
            f"failed {self.failed}"
        )


def load(
    target: Target, body: object, *, holds: bytes = b"", connections: int, seconds: float, rate: float = 0
) -> Outcome:
    """Send the same body over and over for so many seconds.

    Parameters
    ----------
    target : Target
    body : object
        Is sent as JSON.
    holds : bytes
        What a right answer holds.
    connections : int
    seconds : float
    rate : float
        Requests a second, evenly spaced; a late one's latency counts from when it was due. 0: as fast as answers come.
    """
    requests = repeat((0, target.request(body)))
    return _Run(target, requests, lambda _tag, _status, answer: holds in answer).go(connections, seconds, rate)


def send_all(
    target: Target, requests: Iterable[tuple[int, bytes]], answered: Callable[[int, str, bytes], None], connections: int
) -> Outcome:
    """Send each tagged request once; `answered` gets the tag, the status and the whole answer."""

    def right(tag: int, status: str, answer: bytes) -> bool:
        answered(tag, status, answer)
        return True

    return _Run(target, requests, right).go(connections, float("inf"), 0)


class _Connection:
    __slots__ = ("begun", "busy", "received", "socket", "tag")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.busy = False
        self.tag = 0
        self.begun = 0.0
        self.received = b""


class _Run:
    """One run: connections are idle, or wait for an answer."""

    def __init__(
        self, target: Target, requests: Iterable[tuple[int, bytes]], right: Callable[[int, str, bytes], bool]
    ) -> None:
        self._target = target
        self._requests: Iterator[tuple[int, bytes]] | None = iter(requests)
        self._right = right
        self._poll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._busy = 0
        self._over = False
        self._outcome = Outcome(0.0)

    def go(self, connections: int, seconds: float, rate: float) -> Outcome:
        idle = deque(_Connection() for _ in range(connections))
        begun, cpu = time.perf_counter(), time.process_time()
        now, due, end = begun, begun, begun + seconds
        while now < end and (self._busy or self._requests):
            for _ in range(len(idle)):
                if not self._requests or (rate and due > now):
                    break
                self._send(idle, due if rate else time.perf_counter())
                due += 1 / rate if rate else 0
            idle.extend(self._receive_all(max(0.0, min(0.1, due - now)) if rate and idle else 0.1))
            now = time.perf_counter()
        outcome, sent = self._outcome, max(1, sum(self._outcome.statuses.values()))
        outcome.seconds = now - begun
        outcome.own_cpu_ms = 1000 * (time.process_time() - cpu) / sent
        self._finish()
        return outcome

    def _finish(self) -> None:
        """Wait for what is under way: only what is wrong with it counts, its time is over."""
        self._over = True
        deadline = time.perf_counter() + _PATIENCE_S
        while self._busy and time.perf_counter() < deadline:
            self._receive_all(0.1)
        if self._busy:
            self._outcome.statuses["lost"] += self._busy
        for connection in list(self._open.values()):
            self._close(connection)
        self._poll.close()

    def _receive_all(self, pause: float) -> list[_Connection]:
        return [c for descriptor, _event in self._poll.poll(pause) if (c := self._receive(descriptor)) is not None]

    def _send(self, idle: deque[_Connection], begun: float) -> None:
        assert self._requests is not None
        entry = next(self._requests, None)
        if entry is None:
            self._requests = None
            return
        connection = idle.popleft()
        connection.tag, request = entry
        connection.received = b""
        connection.begun = begun
        try:
            if connection.socket is None:
                connection.socket = self._target.connect()
                self._open[connection.socket.fileno()] = connection
                self._poll.register(connection.socket.fileno(), select.EPOLLIN)
            connection.socket.sendall(request)
        except OSError as error:
            self._outcome.statuses[type(error).__name__] += 1
            self._close(connection)
            idle.append(connection)
            return
        connection.busy = True
        self._busy += 1

    def _receive(self, descriptor: int) -> _Connection | None:
        """Read what is there; return the connection when its answer is complete, or will never be."""
        connection = self._open[descriptor]
        assert connection.socket is not None
        try:
            chunk = connection.socket.recv(65536)
        except OSError:
            chunk = b""
        if not connection.busy:  # the server ended it while nobody used it
            self._close(connection)
            return None
        connection.received += chunk
        whole = _complete(connection.received)
        if not whole and chunk:
            return None
        self._count(connection, whole)
        if not chunk or self._target.closes or b"\r\nconnection: close" in connection.received[:1000].lower():
            self._close(connection)
        connection.busy = False
        self._busy -= 1
        return connection

    def _count(self, connection: _Connection, whole: bool) -> None:
        if not whole:
            self._outcome.statuses["closed"] += 1
            return
        answer = connection.received
        status = answer[9:12].decode()
        if not self._right(connection.tag, status, answer) and status == "200":
            status = "wrong"
        if status != "200" or not self._over:
            self._outcome.statuses[status] += 1
            self._outcome.latencies_s.append(time.perf_counter() - connection.begun)

    def _close(self, connection: _Connection) -> None:
        if connection.socket is not None:
            del self._open[connection.socket.fileno()]
            connection.socket.close()  # which takes it out of the poll too
            connection.socket = None


def _complete(data: bytes) -> bool:
    """Whether a whole answer with a length is there."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = data[:end].lower()
    if b"transfer-encoding: chunked" in head:
        return data.endswith(b"0\r\n\r\n")
    _, found, tail = head.partition(b"content-length:")
    return bool(found) and len(data) - end - 4 >= int(tail.split(b"\r\n", 1)[0])
