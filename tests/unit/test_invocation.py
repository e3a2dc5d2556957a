"""What `predict` sends, and to whom."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino import invocation
from mlflow_domino.config import Settings
from mlflow_domino.data_planes.base import Observation
from mlflow_domino.errors import Unavailable
from mlflow_domino.home import Home
from mlflow_domino.models import Endpoint, FileSource, RegistrySource, Status, Version, new_id
from mlflow_domino.views import EndpointView, VersionView


class Replica(http.server.BaseHTTPRequestHandler):
    #: Sent in place of JSON, by something that is no gateway.
    page = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.page or json.dumps({"result": self.headers["Authorization"]}).encode()
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


def test_what_answers_in_the_place_of_a_gateway_is_told(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replica, "page", b"<html>Please sign in</html>")
    monkeypatch.setenv("MLFLOW_DOMINO_TOKEN", "t" * 64)
    view = EndpointView(Endpoint(new_id(), "x", "local", 0), url, Status.RUNNING, "", "", None, ())
    with pytest.raises(Unavailable, match="no gateway of mlflow-domino: '<html>Please sign in"):
        invocation.call(Home(tmp_path), view, {"data": {}})


def view_of(home: Home, source: FileSource | RegistrySource, file: str, content: str) -> EndpointView:
    """Make an endpoint whose one version has one file."""
    version = Version(new_id(), new_id(), 1, 0, source, Settings())
    path = home.version(version.id) / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    current = VersionView(version, Observation(Status.RUNNING), ())
    return EndpointView(Endpoint(new_id(), "x", "local", 0), "", Status.RUNNING, "", "", current, (current,))


SCRIPT = FileSource("/p", "model.py", "predict", "0" * 64)
MODEL = RegistrySource("models:/x/1", "models:/x/1", "0" * 64)


@pytest.mark.parametrize(
    ("source", "file", "content", "data"),
    [
        (SCRIPT, "source/model.py", "async def predict(a, b=2, *, c, d=4): pass", {"a": 1, "c": 1}),
        (SCRIPT, "source/model.py", "def predict(a): print(f'{'nested'}' ; a newer Python's", {}),
        (SCRIPT, "source/gone.py", "", {}),
        (MODEL, "model/input_example.json", '{"columns": ["x"], "data": [[1.5], [2.5]]}', {"x": 1.5}),
        (MODEL, "model/input_example.json", '{"columns": ["x"], "data": {"a": 1}}', {}),
        (MODEL, "model/input_example.json", '{"columns": ["x"], "da', {}),
    ],
)
def test_the_body_to_copy_is_an_example_where_one_can_be_read(
    tmp_path: Path, source: FileSource | RegistrySource, file: str, content: str, data: dict[str, object]
) -> None:
    view = view_of(Home(tmp_path), source, file, content)
    assert json.loads(invocation.example(Home(tmp_path), view)) == {"data": data}
