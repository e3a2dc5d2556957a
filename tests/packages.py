"""Small real packages, and an index that serves them: on loopback, with a password where a test wants one."""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
import threading
import zipfile
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: Names of what the harness needs, as packages that hold nothing.
HARNESS = ("pyuwsgi", "flask", "six", "prometheus_client")


def make_wheel(
    folder: Path, name: str, version: str = "9.0", *, requires: Iterable[str] = (), files: Mapping[str, str] = {}
) -> Path:
    """Write a wheel with one module of the package's name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {need}\n" for need in requires)
    written = {
        f"{name}.py": f"version = {version!r}\n",
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in written.items():
            archive.writestr(file, text)
        record = "".join(
            f"{file},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},\n"
            for file, text in written.items()
        )
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return path


def make_harness(folder: Path) -> Path:
    """Write what the harness needs, so that a test can do without any other index."""
    for name in HARNESS:
        make_wheel(folder, name)
    return folder


class Index:
    """A package index on loopback, over the wheels of a folder.

    Parameters
    ----------
    folder : Path
    user : str
        ``name:password`` that is asked for; empty asks for nothing.
    tls : tuple of Path or None
        Certificate and key, for HTTPS.
    """

    def __init__(self, folder: Path, user: str = "", tls: tuple[Path, Path] | None = None) -> None:
        self.folder = folder
        self.user = user
        #: Downloads of wheels wait here: set it to let them go on.
        self.released = threading.Event()
        self.released.set()
        #: Set when the first download has begun.
        self.asked = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # whoever called refused the certificate

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            # Not in the thread that accepts: a caller who refuses the certificate would stop it.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Index:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, user: str = "") -> str:
        return f"http://{user + '@' if user else ''}127.0.0.1:{self.port}/simple"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = "Basic " + base64.b64encode(self.user.encode()).decode()
        if self.user and request.headers.get("Authorization") != wanted:
            return self._send(request, 401, b"", {"WWW-Authenticate": 'Basic realm="index"'})
        if match := re.fullmatch(r"/simple/([^/]+)/?", request.path):
            wheels = [p for p in self.folder.glob("*.whl") if p.name.split("-")[0].replace("_", "-") == match[1]]
            links = "".join(
                f'<a href="/files/{p.name}#sha256={hashlib.sha256(p.read_bytes()).hexdigest()}">{p.name}</a>'
                for p in wheels
            )
            return self._send(request, 200 if wheels else 404, f"<html><body>{links}</body></html>".encode())
        if (match := re.fullmatch(r"/files/([\w.-]+)", request.path)) and (self.folder / match[1]).is_file():
            self.asked.set()
            self.released.wait(30)
            return self._send(request, 200, (self.folder / match[1]).read_bytes())
        return self._send(request, 404, b"")

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, code: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        try:
            request.send_response(code)
            for name, value in {"Content-Type": "text/html", "Content-Length": str(len(body)), **headers}.items():
                request.send_header(name, value)
            request.end_headers()
            if request.command == "GET":
                request.wfile.write(body)
        except OSError:
            request.close_connection = True  # whoever asked is gone
