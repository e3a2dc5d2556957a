"""A client that calls at a constant rate, whatever the answers take, and remembers what it got."""

from __future__ import annotations

import base64
import collections
import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Load:
    """Requests at `rate` a second from `threads` connections; an answer that is late delays nobody else's.

    Attributes
    ----------
    answers : Counter of (status or error's name)
    results : Counter of the answers' `result`, as JSON
    """

    url: str
    token: str
    body: dict[str, Any]
    rate: float = 200.0
    threads: int = 16
    answers: collections.Counter[Any] = field(default_factory=collections.Counter)
    results: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[tuple[float, str]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _next: float = 0.0

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Call while the block runs; every request that was begun has its answer when it ends."""
        self._next = time.monotonic()
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self.threads)]
        for worker in workers:
            worker.start()
        try:
            yield self
        finally:
            self._ended.set()
            for worker in workers:
                worker.join(90)

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.answers.items() if status != 200)

    def _turn(self) -> float:
        with self._lock:
            mine = max(self._next, time.monotonic() - 1.0)
            self._next = mine + 1.0 / self.rate
        return mine

    def _work(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        basic = base64.b64encode(f"{self.token}:{self.token}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {basic}"}
        payload = json.dumps(self.body)
        connection: http.client.HTTPConnection | None = None
        while not self._ended.wait(max(0.0, self._turn() - time.monotonic())):
            begun = time.time()
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=80)
                connection.request("POST", parts.path, payload, headers)
                response = connection.getresponse()
                text = response.read().decode()
                self._count(response.status, text, begun)
            except (OSError, http.client.HTTPException) as error:
                self._count(type(error).__name__, str(error), begun)
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _count(self, status: Any, text: str, begun: float) -> None:
        with self._lock:
            self.answers[status] += 1
            if status == 200:
                self.results[json.dumps(json.loads(text)["result"])] += 1
            else:
                self.failures.append((begun, f"{status}: {text[:200]}"))
