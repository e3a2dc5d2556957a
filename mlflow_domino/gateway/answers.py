"""What a gateway's watcher answers to probes and to the control plane, on a port of its own.

    GET /ready         200, or 503 and a word why this gateway should get no requests
    GET /health        200
    GET /active/{id}   how many requests are at a version's replicas, or wait for one, as text

Nothing here needs a token, and nothing says more than a number.
"""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable
from typing import Any

from mlflow_domino.errors import GatewayFailed
from mlflow_domino.gateway.surroundings import Surroundings
from mlflow_domino.models import valid_id

__all__ = ["serve"]


def serve(
    surroundings: Surroundings, *, unfit: Callable[[], str], active: Callable[[str], int]
) -> http.server.ThreadingHTTPServer:
    """Answer from threads that end with the process.

    Parameters
    ----------
    unfit : callable
        Tells why this gateway should get no requests; empty where it should.
    active : callable
        Counts the requests of a version; raises GatewayFailed where Envoy does not answer.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            status, text = _answer(self.path, unfit, active)
            body = f"{text}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Probes are no news."""

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in surroundings.host else socket.AF_INET

    server = Server((surroundings.host, surroundings.watcher_port), Handler)
    threading.Thread(target=server.serve_forever, name="answers", daemon=True).start()
    return server


def _answer(path: str, unfit: Callable[[], str], active: Callable[[str], int]) -> tuple[int, str]:
    if path == "/health":
        return 200, "ok"
    if path == "/ready":
        reason = unfit()
        return (503, reason) if reason else (200, "ok")
    version = path.removeprefix("/active/")
    if version != path and valid_id(version):
        try:
            return 200, str(active(version))
        except GatewayFailed:
            return 503, "Envoy does not answer"
    return 404, "not found"
