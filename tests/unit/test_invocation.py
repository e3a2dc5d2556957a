"""What `predict` sends, and to whom."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino import invocation
from mlflow_domino.home import Home
from mlflow_domino.models import Endpoint, Status, new_id
from mlflow_domino.views import EndpointView


class Replica(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"result": self.headers["Authorization"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Replica) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/models/x/latest/model"
        server.shutdown()
        thread.join()


def test_the_token_goes_to_this_machine_past_proxies_and_netrc(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    for name, value in (("NETRC", str(netrc)), ("http_proxy", "http://127.0.0.1:9"), ("MLFLOW_DOMINO_TOKEN", "t" * 64)):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    view = EndpointView(Endpoint(new_id(), "x", "local", 0), url, Status.RUNNING, "", "", None, ())
    assert invocation.call(Home(tmp_path), view, {"data": {}}) == {"predictions": f"Bearer {'t' * 64}"}
