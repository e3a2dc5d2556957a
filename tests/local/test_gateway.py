"""The real Envoy before tiny real servers."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlflow_domino.errors import GatewayFailed
from mlflow_domino.gateway import envoy as rendering
from mlflow_domino.gateway.entry import Entry
from mlflow_domino.gateway.inventory import Certificate, Inventory, Replica, ensure_token, write_inventory
from mlflow_domino.gateway.pipe import fetch
from mlflow_domino.gateway.proxy import Envoy
from mlflow_domino.gateway.routes import Cluster, Route, RouteTable
from tests.certificates import certificate
from tests.conftest import eventually, free_port
from tests.load import Load

E, STOPPED, UNKNOWN = "a" * 24, "b" * 24, "c" * 24
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST",
    "access-control-allow-headers": "authorization,content-type",
}


def version_id(number: int) -> str:
    return f"{number:024x}"


class Gateway:
    """An Envoy, its upstreams and its application, all ended by `close`."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", tls: bool = False) -> None:
        self.folder = folder
        self.entry = Entry(folder / "e", str(folder / "app"), host=host, port=free_port(), tls=tls)
        self.envoy = Envoy(self.entry, log=folder / "envoy.log")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.generation = itertools.count(1)

    def run(self, name: str, argv: list[str], **environment: str) -> subprocess.Popen[bytes]:
        with open(self.folder / "log", "ab") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, **environment})
        self.processes[name] = process
        return process

    def start(self, table: RouteTable, **certificate: Path) -> None:
        self.envoy.prepare(table, **certificate)
        self.start_envoy()

    def start_envoy(self) -> None:
        self.run("envoy", self.envoy.argv(concurrency=1))
        self.envoy.await_ready()

    def upstream(self, name: str, address: str | None = None) -> str:
        """Start a server that answers with its name; return its address once it listens."""
        address = address or str(self.folder / name)
        self.run(name, [sys.executable, "-I", str(Path(__file__).parents[1] / "upstream.py"), address, name])
        eventually(lambda: answers(address))
        return address

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def table(self, *clusters: Cluster, latest: Cluster | None, **settings: Any) -> RouteTable:
        routes = [
            Route(E, "latest", latest.name if latest else None, **settings),
            Route(STOPPED, "latest", None, "stopped"),
        ]
        return RouteTable(clusters, tuple(routes), next(self.generation))

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        shutil.rmtree(self.folder)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.entry.port, timeout=20)

    def call(
        self, path: str = f"/models/{E}/latest/model", body: Any = b"{}", method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        with contextlib.closing(self.connect()) as connection:
            payload = json.dumps(body) if isinstance(body, dict) else body
            with contextlib.suppress(ConnectionError):  # the answer may come before the request is sent whole
                connection.request(method, path, payload, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            content = response.read()
            document = json.loads(content) if content[:1] == b"{" else content
            return response.status, {k.lower(): v for k, v in response.getheaders()}, document

    def raw(self, request: bytes) -> bytes:
        """Send bytes as they are, and return all that comes back."""
        with socket.create_connection(("127.0.0.1", self.entry.port), timeout=10) as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def load(self) -> Load:
        return Load(
            f"http://127.0.0.1:{self.entry.port}/models/{E}/latest/model", "t", {"data": {}}, rate=200, threads=8
        )


def answers(address: str) -> bool:
    try:
        return fetch(address, "/version")[0] == 200
    except OSError:
        return False


def assert_error(answer: tuple[int, dict[str, str], Any], status: int, code: str, words: str) -> None:
    got, headers, document = answer
    assert (got, document["error"]["code"]) == (status, code)
    assert words in document["error"]["message"]
    assert headers["content-type"] == "application/json"
    assert CORS.items() <= headers.items()
    assert "server" not in headers
    assert not [name for name in headers if name.startswith("x-envoy")]
    assert set(document["error"]) == {"message", "code", "request_id"}
    if "x-request-id" in headers:
        assert document["error"]["request_id"] == headers["x-request-id"]


@pytest.fixture
def folder() -> Path:
    """A folder with a short path: pytest's own are longer than a socket's may be."""
    return Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))


@pytest.fixture
def gateway(folder: Path) -> Iterator[Gateway]:
    gateway = Gateway(folder)
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def steady() -> Iterator[Gateway]:
    """One version behind a gateway, for tests that change nothing."""
    gateway = Gateway(Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp")))
    try:
        v1 = Cluster(version_id(1), (gateway.upstream("one"),), 4)
        v2 = Cluster(version_id(2), (gateway.upstream("two"),), 400)
        routes = (
            Route(E, "latest", v2.name, timeout_s=0.5, max_body=4096),
            Route(E, "labels/prod", v1.name, timeout_s=5),
            Route(E, "1", v1.name, timeout_s=5),
            Route(E, "2", v2.name, timeout_s=5, max_body=30 << 20),
            Route(STOPPED, "latest", None, "stopped"),
        )
        gateway.start(RouteTable((v1, v2), routes, 1))
        yield gateway
    finally:
        gateway.close()


def test_latest_prod_and_pinned_routes_lead_to_their_versions(steady: Gateway) -> None:
    found = {label: steady.call(f"/models/{E}/{label}/model")[2] for label in ("latest", "labels/prod", "1", "2")}
    assert {label: got["result"] for label, got in found.items()} == {
        "latest": "two", "labels/prod": "one", "1": "one", "2": "two",
    }  # fmt: skip
    assert found["latest"]["path"] == "/model"


def test_the_paths_of_a_model_keep_their_query(steady: Gateway) -> None:
    assert steady.call(f"/models/{E}/2/invocations?a=b%20c")[2]["path"] == "/invocations?a=b%20c"
    assert steady.call(f"/models/{E}/2/openapi.json", method="GET", body=None)[2]["path"] == "/openapi.json"


def test_what_a_caller_forges_does_not_reach_the_model(steady: Gateway) -> None:
    forged = {
        "x-domino-deadline-ms": "1", "X-Domino-Other": "1", "x_domino_deadline_ms": "1", "x-request-id": "FORGED",
        "x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-max-retries": "9", "x-envoy-internal": "true",
    }  # fmt: skip
    with contextlib.closing(steady.connect()) as connection:
        connection.request("POST", f"/models/{E}/2/model", b'{"sleep": 0.05}', {**forged, "Authorization": "Basic x"})
        got = json.loads(connection.getresponse().read())
    headers = {name.lower(): value for name, value in got["headers"]}
    assert 4800 < int(headers["x-domino-deadline-ms"]) - got["now_ms"] <= 5000
    assert headers["authorization"] == "Basic x"
    assert len(headers["x-request-id"]) == 16
    assert not [name for name in headers if "envoy" in name or "_" in name or name == "x-domino-other"]
    assert [name.lower() for name, _ in got["headers"]].count("x-domino-deadline-ms") == 1


def test_a_chunked_body_arrives_with_its_length(steady: Gateway) -> None:
    status, _, got = steady.call(f"/models/{E}/2/model", iter([b"x" * 1000, b"y" * 500]))
    assert (status, got["length"]) == (200, 1500)


def test_a_connection_is_kept_for_many_requests(steady: Gateway) -> None:
    with contextlib.closing(steady.connect()) as connection:
        connection.connect()
        first = connection.sock
        for _ in range(20):
            connection.request("POST", f"/models/{E}/2/model", b"{}")
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            assert connection.sock is first


def test_forty_kilobytes_of_headers_pass_and_more_are_refused_in_json(steady: Gateway) -> None:
    assert steady.call(f"/models/{E}/2/model", x="y" * 40960)[0] == 200
    assert_error(steady.call(f"/models/{E}/2/model", x="y" * 60000), 431, "HEADERS_TOO_LARGE", "48 KiB")
    assert_error(steady.call(f"/models/{E}/2/model?" + "y" * 5000), 414, "URI_TOO_LONG", "4096 bytes")


@pytest.mark.parametrize("size", [4097, 20 << 20])
def test_a_body_over_the_limit_gets_413_that_names_it(steady: Gateway, size: int) -> None:
    answer = steady.call(body=b"x" * size)
    assert_error(answer, 413, "PAYLOAD_TOO_LARGE", "4096 bytes")
    assert steady.call(body=b"x" * 4096)[0] == 200


def test_a_large_body_passes_where_the_endpoint_allows_it(steady: Gateway) -> None:
    status, _, got = steady.call(f"/models/{E}/2/model", b"x" * (25 << 20))
    assert (status, got["length"]) == (200, 25 << 20)


def test_a_request_over_the_time_limit_gets_504_and_no_other_fails(steady: Gateway) -> None:
    with ThreadPoolExecutor(12) as pool:
        slow = [pool.submit(steady.call, body={"sleep": 1.0}) for _ in range(2)]
        quick = [pool.submit(steady.call) for _ in range(50)]
        for answer in slow:
            assert_error(answer.result(), 504, "TIMEOUT", "0.5 s")
        assert [answer.result()[0] for answer in quick] == [200] * 50


def test_a_full_version_gets_429_at_once_and_another_does_not(steady: Gateway) -> None:
    with ThreadPoolExecutor(8) as pool:
        full = []
        for number in range(1, 5):
            full.append(pool.submit(steady.call, f"/models/{E}/1/model", {"sleep": 1.0}))
            eventually(lambda: steady.envoy.active(version_id(1)) == number)  # noqa: B023 - asked at once
        begun = time.monotonic()
        answer = steady.call(f"/models/{E}/1/model")
        assert time.monotonic() - begun < 0.5
        assert_error(answer, 429, "TOO_MANY_REQUESTS", "busy")
        assert answer[1]["retry-after"] == "1"
        assert steady.call(f"/models/{E}/2/model")[0] == 200
        assert [f.result()[0] for f in full] == [200] * 4
    assert steady.envoy.active(version_id(1)) == 0


@pytest.mark.parametrize(
    ("path", "status", "code", "words"),
    [
        (f"/models/{UNKNOWN}/latest/model", 404, "NOT_FOUND", "no such endpoint"),
        (f"/models/{E}/9/model", 404, "NOT_FOUND", "no such endpoint"),
        (f"/models/{E}/latest/metrics", 404, "NOT_FOUND", "no such endpoint"),
        (f"/models/{E}/latest/model/", 404, "NOT_FOUND", "no such endpoint"),
        (f"/models/{STOPPED}/latest/model", 503, "NOT_READY", "stopped"),
        ("/metrics", 503, "NOT_READY", "try again"),  # no application runs here
    ],
)
def test_envoys_own_answers_have_the_shape_of_the_harness(
    steady: Gateway, path: str, status: int, code: str, words: str
) -> None:
    answer = steady.call(path)
    assert_error(answer, status, code, words)
    assert len(answer[2]["error"]["request_id"]) == 16


def test_the_preflight_of_a_browser_is_answered_without_a_token(steady: Gateway) -> None:
    for endpoint in (E, STOPPED):
        status, headers, body = steady.call(
            f"/models/{endpoint}/latest/model", None, "OPTIONS", origin="https://a.example"
        )
        assert (status, body) == (204, b"")
        assert CORS.items() <= headers.items()
        assert not {"access-control-allow-credentials", "vary"} & set(headers)
    assert CORS.items() <= steady.call()[1].items()


@pytest.mark.parametrize(
    "path",
    [
        f"/models/{E}/latest/../../../metrics", f"/models/{E}/latest/%2e%2e/%2E%2e/metrics", f"/models/{E}/latest/model%2f..%2f..%2fmetrics",
        f"/models/{E}/latest/model/../metrics", f"/models/{E}/latest/model;/../metrics", f"/models/{E}/latest/model%00",
        f"/models/{E}/latest/model\\..\\metrics", f"/models/{E}/latest/%6detrics", f"/models/{E}//metrics", "//metrics", "/./metrics",
        f"/Models/{E}/latest/metrics", f"http://other/models/{E}/latest/metrics", f"/models/{E}/latest/model/%2e%2e/%2e%2e/latest/metrics",
    ],
)  # fmt: skip
def test_no_path_reaches_a_replica_but_the_three_of_a_model(steady: Gateway, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    answer = steady.raw(request)
    assert answer.split(b" ", 2)[1] in (b"400", b"404", b"503")
    assert b'"result"' not in answer


@pytest.mark.parametrize("path", [f"//models//{E}/2/model", f"/a/../models/{E}/2/model", f"/models/{E}/2/%6dodel"])
def test_a_path_that_means_a_model_reaches_it_in_its_plain_form(steady: Gateway, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    assert b'"path": "/model"' in steady.raw(request)


def test_two_lengths_or_a_broken_request_are_refused_in_json(steady: Gateway) -> None:
    smuggled = f"POST /models/{E}/2/model HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    for request in (smuggled, "GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", "nonsense\r\n\r\n"):
        answer = steady.raw(request.encode())
        assert b" 400 " in answer.splitlines()[0]
        assert b'"code":"BAD_REQUEST"' in answer


def test_http_1_0_is_spoken(steady: Gateway) -> None:
    answer = steady.raw(f"POST /models/{E}/2/model HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    assert b" 200 " in answer.splitlines()[0]


def test_statistics_are_kept_for_each_route(steady: Gateway) -> None:
    before = steady.envoy.admin.statistics(rf"^vhost\.models\.route\.{E}_labels_prod\.upstream_rq_total$")
    steady.call(f"/models/{E}/labels/prod/model")
    after = steady.envoy.admin.statistics(rf"^vhost\.models\.route\.{E}_labels_prod\.upstream_rq_total$")
    assert sum(after.values()) - sum(before.values()) == 1


def test_the_admin_socket_is_ours_alone_and_shows_little(steady: Gateway) -> None:
    assert steady.entry.admin_socket.stat().st_mode & 0o777 == 0o600
    assert fetch(str(steady.entry.admin_socket), "/quitquitquit", method="POST")[0] == 403
    assert fetch(str(steady.entry.admin_socket), "/config_dump")[0] == 403


def test_ten_switches_under_load_lose_no_request(gateway: Gateway) -> None:
    current = Cluster(version_id(0), (gateway.upstream("v0"),))
    gateway.start(gateway.table(current, latest=current))
    with gateway.load().running() as load:
        for number in range(1, 11):
            new = Cluster(version_id(number), (gateway.upstream(f"v{number}"),))
            gateway.envoy.publish(gateway.table(current, new, latest=new))
            assert gateway.call()[2]["result"] == f"v{number}"
            eventually(lambda: gateway.envoy.active(current.name) == 0)  # noqa: B023
            table = gateway.table(new, latest=new)
            gateway.envoy.publish(table)
            gateway.envoy.retire(table)
            gateway.kill(f"v{number - 1}")
            current = new
    assert load.failures == []
    assert load.answers[200] > 100
    assert gateway.envoy.accepted() == table.generation


def test_killing_one_of_two_replicas_fails_at_most_what_was_in_flight_on_it(gateway: Gateway) -> None:
    cluster = Cluster(version_id(1), (gateway.upstream("one"), gateway.upstream("two")))
    gateway.start(gateway.table(cluster, latest=cluster))
    with gateway.load().running() as load:
        eventually(lambda: len(load.results) == 2)
        gateway.kill("one")  # its socket stays, and nobody accepts
        count = load.answers[200]
        eventually(lambda: load.answers[200] > count + 200)
        os.unlink(gateway.folder / "one")
        count = load.answers[200]
        eventually(lambda: load.answers[200] > count + 100)
        gateway.upstream("one")
        before = load.results['"one"']
        eventually(lambda: load.results['"one"'] > before + 20)
    assert load.failed <= 8, load.failures  # as many as the client has connections
    assert all("REPLICA_LOST" in words for _, words in load.failures)


def test_a_replica_that_ends_under_a_request_is_reported_and_the_request_not_repeated(gateway: Gateway) -> None:
    cluster = Cluster(version_id(1), (gateway.upstream("one"), gateway.upstream("two")))
    gateway.start(gateway.table(cluster, latest=cluster))
    assert_error(gateway.call(body={"end": True}), 503, "REPLICA_LOST", "may have run")
    replicas = [gateway.processes[name] for name in ("one", "two")]
    eventually(lambda: [p.poll() for p in replicas].count(None) < 2)
    assert gateway.call()[0] == 200
    assert [p.poll() for p in replicas].count(None) == 1


def test_an_upload_that_began_before_the_switch_is_answered_after_the_old_version_is_gone(gateway: Gateway) -> None:
    old = Cluster(version_id(1), (gateway.upstream("old"),))
    gateway.start(gateway.table(old, latest=old))
    with contextlib.closing(gateway.connect()) as connection:
        connection.putrequest("POST", f"/models/{E}/latest/model")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"x" * 500)
        eventually(lambda: gateway.envoy.admin.statistics("^http.gateway.downstream_rq_active$").popitem()[1] == 1)
        new = Cluster(version_id(2), (gateway.upstream("new"),))
        gateway.envoy.publish(gateway.table(old, new, latest=new))
        assert gateway.envoy.active(old.name) == 0
        table = gateway.table(new, latest=new)
        gateway.envoy.publish(table)
        gateway.envoy.retire(table)
        gateway.kill("old")
        connection.send(b"x" * 500)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["result"]) == (200, "new")


def test_a_configuration_that_envoy_refuses_is_put_back_with_its_reason(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Cluster(version_id(1), (gateway.upstream("one"),))
    gateway.start(gateway.table(one, latest=one))
    two = Cluster(version_id(2), (gateway.upstream("two"),))
    files = (gateway.entry.routes_file, gateway.entry.clusters_file)
    before = [file.read_bytes() for file in files]
    routes, clusters = rendering.routes, rendering.clusters
    for name, broken in (
        ("routes", lambda table: {**routes(table), "virtual_hostz": []}),
        ("routes", lambda table: {**routes(table), "virtual_hosts": [{"name": ""}]}),
        ("clusters", lambda present: [{**c, "connect_timeout": "-1s"} for c in clusters(present)]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(rendering, name, broken)
            with pytest.raises(GatewayFailed, match="refused") as failure:
                gateway.envoy.publish(gateway.table(one, two, latest=two))
        assert any(word in failure.value.log_tail for word in ("virtual_hostz", "VirtualHost", "duration"))
        assert [file.read_bytes() for file in files] == before
        assert gateway.call()[2]["result"] == "one"
    gateway.kill("envoy")
    gateway.start_envoy()
    assert gateway.call()[2]["result"] == "one"
    gateway.envoy.publish(gateway.table(one, two, latest=two))
    assert gateway.call()[2]["result"] == "two"


def test_publishing_waits_for_an_envoy_that_begins_anew(gateway: Gateway) -> None:
    one = Cluster(version_id(1), (gateway.upstream("one"),))
    two = Cluster(version_id(2), (gateway.upstream("two"),))
    gateway.start(gateway.table(one, two, latest=one))
    gateway.kill("envoy")
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(gateway.envoy.publish, gateway.table(one, two, latest=two))
        gateway.start_envoy()
        publishing.result(20)
    assert gateway.call()[2]["result"] == "two"


def test_publishing_the_same_again_is_accepted_at_once(gateway: Gateway) -> None:
    one = Cluster(version_id(1), (gateway.upstream("one"),))
    table = gateway.table(one, latest=one)
    gateway.start(table)
    for _ in range(2):
        gateway.envoy.publish(table, timeout_s=2)
        gateway.envoy.retire(table, timeout_s=2)
    assert gateway.envoy.accepted() == table.generation


def test_a_port_that_is_taken_is_named_and_not_shared(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", gateway.entry.port)), pytest.raises(GatewayFailed) as failure:
        gateway.start(RouteTable())
    assert str(gateway.entry.port) in str(failure.value)
    assert "in use" in failure.value.log_tail
    assert not gateway.envoy.ready()


def test_a_second_gateway_does_not_take_half_of_the_requests(gateway: Gateway, folder: Path) -> None:
    gateway.start(RouteTable())
    (folder / "second").mkdir()
    second = Gateway(folder / "second")
    second.entry = Entry(folder / "second" / "e", str(folder / "app"), port=gateway.entry.port)
    second.envoy = Envoy(second.entry, log=folder / "second" / "log")
    try:
        with pytest.raises(GatewayFailed):
            second.start(RouteTable())
    finally:
        second.close()


def test_replicas_on_ports_get_requests_once_they_say_that_they_are_ready(gateway: Gateway) -> None:
    addresses = [f"127.0.0.1:{free_port()}", f"localhost:{free_port()}"]
    for number, address in enumerate(addresses):
        gateway.upstream(f"container-{number}", address)
    answer = http.client.HTTPConnection(addresses[0])
    answer.request("POST", "/model", b'{"ready": false}')
    answer.getresponse().read()
    answer.close()
    cluster = Cluster(version_id(1), tuple(addresses), health_check=True)
    gateway.start(gateway.table(cluster, latest=cluster))
    assert {gateway.call()[2]["result"] for _ in range(20)} == {"container-1"}


def test_a_switch_waits_until_envoy_itself_finds_the_new_containers_healthy(gateway: Gateway) -> None:
    def containers(number: int) -> Cluster:
        address = gateway.upstream(f"container-{number}", f"127.0.0.1:{free_port()}")
        return Cluster(version_id(number), (address,), health_check=True)

    current = containers(0)
    gateway.start(gateway.table(current, latest=current))
    with gateway.load().running() as load:
        for number in range(1, 4):
            new = containers(number)
            gateway.envoy.publish(gateway.table(current, new, latest=new))
            assert gateway.call()[2]["result"] == f"container-{number}"
            current = new
        nobody = Cluster(version_id(9), (f"127.0.0.1:{free_port()}",), health_check=True)
        with pytest.raises(GatewayFailed, match="no healthy replica"):
            gateway.envoy.publish(gateway.table(current, nobody, latest=nobody), timeout_s=0.5)
        assert gateway.call()[2]["result"] == "container-3"
    assert load.failures == []


def shown(port: int) -> str:
    """Return the PEM of the certificate that a listener shows."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=5).strip()


def test_tls_is_spoken_and_a_renewed_certificate_is_taken_without_losing_a_connection(folder: Path) -> None:
    gateway = Gateway(folder, tls=True)
    try:
        chain, key = certificate(folder, "first")
        one = Cluster(version_id(1), (gateway.upstream("one"),))
        gateway.start(gateway.table(one, latest=one), chain=chain, key=key)
        context = ssl.create_default_context(cafile=str(chain))
        with contextlib.closing(
            http.client.HTTPSConnection("127.0.0.1", gateway.entry.port, timeout=10, context=context)
        ) as connection:
            connection.request("POST", f"/models/{E}/latest/model", b"{}")
            assert json.loads(connection.getresponse().read())["result"] == "one"
            assert shown(gateway.entry.port) == chain.read_text().strip()
            assert gateway.envoy.renew_certificate(chain, key) is False
            chain2, key2 = certificate(folder, "second")
            assert gateway.envoy.renew_certificate(chain2, key2) is True
            eventually(lambda: shown(gateway.entry.port) == chain2.read_text().strip())
            connection.request("POST", f"/models/{E}/latest/model", b"{}")
            assert connection.getresponse().status == 200
    finally:
        gateway.close()


def serve(gateway: Gateway, inventory: Inventory) -> None:
    path = gateway.folder / "gateway.json"
    write_inventory(path, inventory)
    gateway.run("app", [sys.executable, "-m", "mlflow_domino.gateway.serve", gateway.entry.application, str(path)])
    eventually(lambda: gateway.call("/health", None, "GET")[0] == 200)


def test_the_application_answers_everything_that_is_no_model(gateway: Gateway) -> None:
    one = Cluster(version_id(1), (gateway.upstream("one"),))
    gateway.start(gateway.table(one, latest=one))
    token_file, own = gateway.folder / "token", gateway.folder / "own"
    token, _ = ensure_token(token_file), ensure_token(own)
    replicas = (
        Replica(E, 1, 0, one.addresses[0], str(own)),
        Replica(E, 1, 1, str(gateway.folder / "nobody"), str(own)),
    )
    serve(gateway, Inventory(str(gateway.entry.admin_socket), str(token_file), replicas))
    status, headers, document = gateway.call("/", None, "GET")
    assert (status, document["name"]) == (200, "mlflow-domino")
    assert E not in json.dumps(document)
    assert gateway.call("/nothing", None, "GET")[2]["error"]["code"] == "NOT_FOUND"
    assert gateway.call("/health", method="DELETE")[2]["error"]["code"] == "METHOD_NOT_ALLOWED"
    for wrong in ("", "Bearer wrong", "Basic eDp5", "Basic ???"):
        status, headers, document = gateway.call("/metrics", None, "GET", authorization=wrong)
        assert (status, document["error"]["code"]) == (401, "UNAUTHORIZED")
        assert headers["www-authenticate"].startswith("Basic")
    gateway.call()
    text = gateway.call("/metrics", None, "GET", authorization=f"Bearer {token}")[2].decode()
    assert f'domino_requests_total{{endpoint="{E}",version="1",replica="0",code="200"}} 7' in text
    assert f'domino_replica_up{{endpoint="{E}",version="1",replica="1"}} 0' in text
    assert f'envoy_vhost_route_upstream_rq_total{{endpoint="{E}",route="latest"}} 1' in text
    assert text.count("# TYPE domino_requests ") == 1


def test_models_answer_while_the_application_is_dead(gateway: Gateway) -> None:
    one = Cluster(version_id(1), (gateway.upstream("one"),))
    gateway.start(gateway.table(one, latest=one))
    serve(gateway, Inventory(str(gateway.entry.admin_socket), str(gateway.folder / "token")))
    with gateway.load().running() as load:
        gateway.kill("app")
        count = load.answers[200]
        eventually(lambda: load.answers[200] > count + 50)
    assert load.failures == []
    assert gateway.call("/health", None, "GET")[0] == 503


def test_the_application_notices_a_renewed_certificate(folder: Path) -> None:
    gateway = Gateway(folder, tls=True)
    try:
        chain, key = certificate(folder, "first")
        gateway.start(RouteTable(), chain=chain, key=key)
        files = Certificate(str(gateway.entry.certificate_file), str(chain), str(key))
        path = folder / "gateway.json"
        write_inventory(path, Inventory(str(gateway.entry.admin_socket), str(folder / "token"), (), files))
        gateway.run("app", [sys.executable, "-m", "mlflow_domino.gateway.serve", gateway.entry.application, str(path)])
        eventually(lambda: answers(gateway.entry.application) or os.path.exists(gateway.entry.application))
        chain2, key2 = certificate(folder, "second")
        shutil.copyfile(key2, key)  # not at once: for a moment they do not belong together
        shutil.copyfile(chain2, chain)
        eventually(lambda: shown(gateway.entry.port) == chain2.read_text().strip())
    finally:
        gateway.close()


def test_a_gateway_that_is_told_to_end_leaves_nothing(gateway: Gateway) -> None:
    gateway.start(RouteTable())
    process = gateway.processes.pop("envoy")
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", gateway.entry.port), timeout=1)
