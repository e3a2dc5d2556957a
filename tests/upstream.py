"""A replica's stand-in: ``python tests/upstream.py ADDRESS NAME``, on a Unix socket's path or host:port.

It answers as the harness does, closes each connection as uWSGI does, and returns what it got. A JSON body may ask it
to sleep, to end, or for its readiness to change.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import socketserver
import sys
import time
from typing import Any


class Handler(http.server.BaseHTTPRequestHandler):
    ready = True

    def address_string(self) -> str:
        return "gateway"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        status = 200 if Handler.ready or self.path != "/ready" else 503
        if self.path == "/metrics":
            self._answer(
                b'# HELP domino_requests Requests.\n# TYPE domino_requests counter\ndomino_requests_total{code="200"} 7\n'
            )
        else:
            self._answer(json.dumps({"result": NAME, "path": self.path}).encode(), status)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = json.loads(body) if body.startswith(b"{") else {}
        if "ready" in asked:
            Handler.ready = asked["ready"]
        time.sleep(asked.get("sleep", 0))
        if asked.get("end"):
            os._exit(1)
        got = {"path": self.path, "headers": self.headers.items(), "length": len(body), "now_ms": time.time() * 1000}
        self._answer(json.dumps({"result": NAME, **got}).encode())

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = super().get_request()
        return connection, ("gateway", 0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # callers hang up


class PipeServer(Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        # As the harness: nobody finds the socket before somebody listens.
        self.socket.bind(str(self.server_address) + ".starting")

    def server_activate(self) -> None:
        super().server_activate()
        os.replace(str(self.server_address) + ".starting", str(self.server_address))


if __name__ == "__main__":
    ADDRESS, NAME = sys.argv[1:]
    if ADDRESS.startswith("/"):
        PipeServer(ADDRESS, Handler).serve_forever()  # type: ignore[arg-type]
    host, _, port = ADDRESS.rpartition(":")
    Server((host, int(port)), Handler).serve_forever()
