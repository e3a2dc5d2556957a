"""Answers for the replica's health on a port of its own, from the watchdog's process.

All workers may be busy for as long as a request may take: what asks them waits, and takes a busy replica for a dead one.
"""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .readiness import Readiness
from .slots import Phase, Slots, State

__all__ = ["Health", "serve"]

#: A watchdog that has not looked for so long looks after nothing any more.
_LOOK_S = 15.0
#: How long all workers may be away at once, as while a single one is replaced, before requests should go elsewhere.
_AWAY_S = 5.0
_PATIENCE_S = 5.0


class Health:
    """Whether the replica can mend itself, or must be started again.

    Parameters
    ----------
    slots : Slots
    start_timeout_s : float
        How long a worker that replaces another may take to load.
    """

    def __init__(self, slots: Slots, start_timeout_s: float) -> None:
        self._slots = slots
        self._start_timeout_s = start_timeout_s
        self._looked = self._served = time.monotonic()

    def looked(self) -> None:
        """Note that the watchdog is at work, and whether there is a worker that serves."""
        self._looked = time.monotonic()
        states = (self._slots.worker(n).state for n in range(1, self._slots.workers + 1))
        if self._slots.phase is Phase.STARTING or State.READY in states:
            self._served = self._looked

    @property
    def serving(self) -> bool:
        """Whether some worker serves, or did a moment ago."""
        return time.monotonic() - self._served <= _AWAY_S

    @property
    def good(self) -> bool:
        """Whether it can mend itself."""
        now = time.monotonic()
        serves = now - self._served <= self._start_timeout_s
        return serves and now - self._looked <= _LOOK_S and self._slots.phase is not Phase.FAILED


def serve(port: int, health: Health, readiness: Readiness) -> ThreadingHTTPServer:
    """Answer GET /health and GET /ready from a thread, until the process ends."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "domino", ""
        timeout = _PATIENCE_S  # who connects and says nothing holds no thread for longer

        def do_GET(self) -> None:
            if self.path == "/ready":
                self._answer(readiness.open and health.serving, "starting", readiness.headers(own=0))
            elif self.path == "/health":
                self._answer(health.good, "stuck")
            else:
                self.send_error(404)

        def _answer(self, good: bool, otherwise: str, headers: Any = None) -> None:
            body = f"{'ok' if good else otherwise}\n".encode()
            self.send_response(200 if good else 503)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass  # each second, for ever

    server = ThreadingHTTPServer(("0.0.0.0", port), Handler)  # noqa: S104 - in a pod, for its kubelet
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="domino-probe", daemon=True).start()
    return server
