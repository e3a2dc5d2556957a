"""What a cluster's client does with answers, and with servers that give none; the servers here are real, and small."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import Conflict, Expired, Failed, Forbidden, InvalidInput, NotFound, Unavailable, Unreachable
from tests.conftest import free_port

CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}

#: Takes method and path, returns code, headers and chunks of the body.
Script = Callable[[str, str], tuple[int, dict[str, str], list[bytes]]]


def to(server: str, folder: Path) -> Cluster:
    path = folder / "kubeconfig"
    document = {
        "current-context": "own",
        "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own", "namespace": "n"}}],
        "clusters": [{"name": "own", "cluster": {"server": server}}],
        "users": [{"name": "own", "user": {"token": "hunter2"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return Cluster(kubeconfig=str(path))


class Server:
    """An API server that answers as a test says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.script: Script = lambda _method, _path: (200, {}, [b"{}"])
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append(f"{self.command} {self.path}")
                code, headers, chunks = outer.script(self.command, self.path)
                if not code:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response_only(code)
                for name, value in {"Transfer-Encoding": "chunked", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for chunk in chunks:
                    self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                    self.wfile.flush()
                if headers.get("X-Cut"):
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def cluster(server: Server, tmp_path: Path) -> Iterator[Cluster]:
    cluster = to(server.url, tmp_path)
    yield cluster
    cluster.close()


def status(code: int, reason: str, message: str, **more: Any) -> tuple[int, dict[str, str], list[bytes]]:
    document = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message, **more}
    return code, {}, [json.dumps(document).encode()]


def answer(document: Any, **headers: str) -> tuple[int, dict[str, str], list[bytes]]:
    return 200, headers, [json.dumps(document).encode()]


# ---- servers that do not answer ------------------------------------------------------------------------------------


def test_a_port_that_nobody_listens_on_is_named_with_context_and_server(tmp_path: Path) -> None:
    port = free_port()
    cluster = to(f"https://127.0.0.1:{port}", tmp_path)
    wanted = rf"The cluster 'own' \(https://127.0.0.1:{port}\) does not answer: connection refused"
    for ask in (
        lambda: cluster.get("ConfigMap", "a"),
        lambda: cluster.list("ConfigMap"),
        lambda: cluster.apply(CONFIG_MAP),
        lambda: cluster.delete("ConfigMap", "a"),
        lambda: next(cluster.watch("ConfigMap")),
        lambda: cluster.proxy("a", 80, "/"),
        lambda: cluster.pod_log("a"),
        lambda: cluster.may("get", "Pod"),
        cluster.version,
        cluster.clock,
    ):
        with pytest.raises(Unreachable, match=wanted):
            ask()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_accepts_and_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr("mlflow_domino.transport._CONNECT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        cluster = to(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        with pytest.raises(Unreachable, match="no answer in time"):
            cluster.proxy("a", 80, "/", timeout_s=0.2)
        cluster.close()


def test_a_name_that_nobody_knows_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"api.invalid:6443.* does not answer"):
        to("https://api.invalid:6443", tmp_path).version()


def test_what_answers_but_is_no_api_server_is_shown(server: Server, cluster: Cluster) -> None:
    server.script = lambda *_: (200, {}, [b"<html>log in</html>"])
    with pytest.raises(Unavailable, match="is no API server: b'<html>log in"):
        cluster.get("ConfigMap", "a")


def test_credentials_in_the_url_of_a_server_are_not_shown(tmp_path: Path) -> None:
    cluster = to(f"https://user:hunter2@127.0.0.1:{free_port()}", tmp_path)
    with pytest.raises(Unreachable) as caught:
        cluster.version()
    assert "hunter2" not in str(caught.value)


def test_a_write_without_an_answer_is_in_doubt_and_not_sent_again(server: Server, cluster: Cluster) -> None:
    server.script = lambda *_: (0, {}, [])
    with pytest.raises(Unreachable, match="Whether it was done is not known"):
        cluster.create(CONFIG_MAP)
    assert len(server.asked) == 1


def test_a_question_is_asked_again_when_a_kept_connection_was_closed(server: Server, cluster: Cluster) -> None:
    answers = iter([(0, {}, []), answer({"major": "1", "minor": "29+"})])
    server.script = lambda *_: next(answers)
    assert cluster.version() == (1, 29)
    server.script = lambda *_: (0, {}, [])
    with pytest.raises(Unreachable):
        cluster.version()


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_and_then_said_to_be_busy(server: Server, cluster: Cluster) -> None:
    busy = (429, {"Retry-After": "0"}, [b"{}"])
    answers = iter([busy, answer(CONFIG_MAP)])
    server.script = lambda *_: next(answers)
    assert cluster.create(CONFIG_MAP)["kind"] == "ConfigMap"  # it had not begun with it
    server.script = lambda *_: busy
    with pytest.raises(Unavailable, match="too busy or starting"):
        cluster.create(CONFIG_MAP)


@pytest.mark.parametrize(
    ("code", "reason", "message", "error", "shown"),
    [
        (401, "Unauthorized", "Unauthorized", Forbidden, "does not accept your credentials"),
        (403, "Forbidden", 'configmaps is forbidden: User "u" cannot create resource "configmaps" in API group "" in the '
         'namespace "n"', Forbidden, r"no right to create configmaps in the namespace 'n' .*verbs \['create'\]"),
        (403, "Forbidden", 'pods "a" is forbidden: exceeded quota: q, requested: pods=1', Forbidden, "exceeded quota: q"),
        (403, "Forbidden", 'pods "a" is forbidden: violates PodSecurity "restricted:latest": x', Forbidden, "PodSecurity"),
        (400, "BadRequest", "admission webhook \"w\" denied the request: no", InvalidInput, "denied the request: no"),
        (409, "Conflict", "the object has been modified", Conflict, "Somebody else changed ConfigMap 'a'"),
        (413, "RequestEntityTooLarge", "limit is 3145728", InvalidInput, "limit is 3145728"),
        (422, "Invalid", "a: Invalid value", InvalidInput, "a: Invalid value"),
        (500, "InternalError", "etcdserver: x", Failed, "etcdserver: x"),
        (503, "ServiceUnavailable", "apiserver is shutting down", Unavailable, "shutting down"),
    ],
)  # fmt: skip
def test_a_refusal_is_an_error_of_ours_with_the_servers_words(
    server: Server, cluster: Cluster, code: int, reason: str, message: str, error: type[Exception], shown: str
) -> None:
    server.script = lambda *_: status(code, reason, message)
    with pytest.raises(error, match=shown) as caught:
        cluster.create(CONFIG_MAP)
    assert "hunter2" not in str(caught.value)


def test_an_answer_of_a_proxy_in_between_is_an_error_all_the_same(server: Server, cluster: Cluster) -> None:
    server.script = lambda *_: (502, {}, [b"<html>bad gateway</html>"])
    with pytest.raises(Unavailable, match="502"):
        cluster.get("ConfigMap", "a")
    server.script = lambda *_: (404, {}, [b"<html>no such path</html>"])
    assert cluster.get("ConfigMap", "a") is None


# ---- versions of the API -------------------------------------------------------------------------------------------


def old_server(_method: str, path: str) -> tuple[int, dict[str, str], list[bytes]]:
    if path == "/apis/discovery.k8s.io/v1beta1":
        return answer({"resources": [{"kind": "EndpointSlice"}]})
    if path.startswith("/apis/discovery.k8s.io/v1beta1/"):
        items = [{"metadata": {"name": "a"}, "endpoints": [{"topology": {"kubernetes.io/hostname": "n1", "x": "y"}}]}]
        return answer({"metadata": {}, "items": items})
    return status(404, "NotFound", "the server could not find the requested resource")


def new_server(_method: str, path: str) -> tuple[int, dict[str, str], list[bytes]]:
    if path == "/apis/discovery.k8s.io/v1":
        return answer({"resources": [{"kind": "EndpointSlice"}]})
    if path.startswith("/apis/discovery.k8s.io/v1/"):
        return answer({"metadata": {}, "items": [{"metadata": {"name": "a"}, "endpoints": [{"nodeName": "n1"}]}]})
    return status(404, "NotFound", "the server could not find the requested resource")


def test_a_server_that_is_upgraded_meanwhile_is_asked_in_its_new_version(server: Server, cluster: Cluster) -> None:
    server.script = old_server
    before = cluster.list("EndpointSlice")[0]
    server.script = new_server
    after = cluster.list("EndpointSlice")[0]
    assert before["apiVersion"] == after["apiVersion"] == "discovery.k8s.io/v1"
    assert before["endpoints"] == [{"nodeName": "n1", "deprecatedTopology": {"x": "y"}}]
    assert after["endpoints"] == [{"nodeName": "n1"}]


def test_which_versions_there_are_is_asked_once(server: Server, cluster: Cluster) -> None:
    server.script = old_server
    for _ in range(3):
        cluster.list("EndpointSlice")
    assert len([path for path in server.asked if path.count("/") == 3]) == 2


# ---- watching ------------------------------------------------------------------------------------------------------


def event(what: str, **more: Any) -> bytes:
    return json.dumps({"type": what, "object": {**CONFIG_MAP, **more}}).encode() + b"\n"


def test_events_come_whole_however_they_are_cut(server: Server, cluster: Cluster) -> None:
    text = event("ADDED") + event("MODIFIED", data={"k": "ü" * 10}) + event("BOOKMARK") + event("DELETED")
    server.script = lambda *_: (200, {}, [text[n : n + 7] for n in range(0, len(text), 7)])
    seen = list(cluster.watch("ConfigMap", {"a": "b"}, resource_version="7", timeout_s=3))
    assert [what for what, _ in seen] == ["ADDED", "MODIFIED", "BOOKMARK", "DELETED"]
    assert seen[1][1]["data"] == {"k": "ü" * 10}
    for part in ("labelSelector=a%3Db", "resourceVersion=7", "timeoutSeconds=3", "watch=true", "/namespaces/n/"):
        assert part in server.asked[0]


def test_a_watch_from_too_long_ago_says_so_however_the_server_does(server: Server, cluster: Cluster) -> None:
    gone = {"kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired", "message": "too old"}
    server.script = lambda *_: (
        200,
        {},
        [event("ADDED"), json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n"],
    )
    watch = cluster.watch("ConfigMap")
    assert next(watch)[0] == "ADDED"
    with pytest.raises(Expired, match="must be listed again"):
        next(watch)
    server.script = lambda *_: (410, {}, [json.dumps(gone).encode()])
    with pytest.raises(Expired):
        next(cluster.watch("ConfigMap"))


def test_a_watch_that_is_cut_off_is_an_error_after_what_was_seen(server: Server, cluster: Cluster) -> None:
    server.script = lambda *_: (200, {"X-Cut": "1"}, [event("ADDED"), b'{"type": "MODI'])
    watch = cluster.watch("ConfigMap")
    assert next(watch)[0] == "ADDED"
    with pytest.raises(Unreachable):
        next(watch)


def test_a_list_whose_pages_took_too_long_is_begun_anew(server: Server, cluster: Cluster) -> None:
    page = {"metadata": {"continue": "more"}, "items": [{"metadata": {"name": "old"}}]}
    whole = {"metadata": {"resourceVersion": "9"}, "items": [{"metadata": {"name": "new"}}]}
    answers = iter([answer(page), status(410, "Expired", "too old"), answer(whole)])
    server.script = lambda *_: next(answers)
    found = cluster.list("ConfigMap")
    assert [one["metadata"]["name"] for one in found] == ["new"]
    assert found.resource_version == "9"


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_the_time_is_the_servers(server: Server, cluster: Cluster) -> None:
    server.script = lambda *_: answer({"major": "1", "minor": "29"}, Date="Thu, 01 Jan 2099 00:00:00 GMT")
    assert cluster.clock() == pytest.approx(4070908800, abs=5)


def test_a_pod_is_distinguished_from_the_server_that_asks_it(server: Server, cluster: Cluster) -> None:
    server.script = lambda *_: (503, {"X-Why": "busy"}, [b"busy"])
    code, headers, body = cluster.proxy("pod", 8421, "ready?a=%26&b=")
    assert (code, headers["X-Why"], body) == (503, "busy", b"busy")
    assert server.asked == ["GET /api/v1/namespaces/n/pods/pod:8421/proxy/ready?a=%26&b="]
    server.script = lambda *_: status(503, "ServiceUnavailable", "error trying to reach service: dial tcp: refused")
    with pytest.raises(Unavailable, match=r"The pod 'pod' .* does not answer on port 8421"):
        cluster.proxy("pod", 8421, "/ready")
    server.script = lambda *_: status(404, "NotFound", 'pods "pod" not found')
    with pytest.raises(NotFound):
        cluster.proxy("pod", 8421, "/ready")
