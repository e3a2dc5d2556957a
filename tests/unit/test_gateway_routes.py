from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_domino.errors import InvalidInput
from mlflow_domino.gateway.routes import Cluster, Move, Route, RouteTable, moves, stand_ins

E = "e" * 24
V1, V2, V3 = "1" * 24, "2" * 24, "3" * 24


def cluster(name: str) -> Cluster:
    return Cluster(name, (f"/run/{name}-0",))


def table(latest: str | None, *present: str) -> RouteTable:
    return RouteTable(tuple(map(cluster, present)), (Route(E, "latest", latest),))


@pytest.mark.parametrize(
    "endpoint_id", ["", "e" * 23, "E" * 24, "e" * 24 + "\n", "../../../../../../etc", "e" * 23 + "/"]
)
def test_an_endpoint_id_is_24_hexadecimal_digits_and_nothing_else(endpoint_id: str) -> None:
    with pytest.raises(InvalidInput):
        Route(endpoint_id, "latest", None)


@pytest.mark.parametrize(
    "label", ["", "0", "01", "-1", "latest\n", "Latest", "labels/dev", "labels/prod/", "..", "1/2", "\u0661"]
)
def test_a_label_is_latest_or_prod_or_a_number(label: str) -> None:
    with pytest.raises(InvalidInput):
        Route(E, label, None)


@pytest.mark.parametrize("address", ["", "relative", "/a\nb", "/" + "a" * 107, "/" + "é" * 54, "host", "host:0",
                                     "host:70000", "ho st:80", "-host:80", "http://host:80", "host:80/path", "@abstract"])  # fmt: skip
def test_an_address_is_a_short_path_or_host_and_port(address: str) -> None:
    with pytest.raises(InvalidInput):
        Cluster(V1, (address,))


@pytest.mark.parametrize(
    "address", ["/" + "a" * 106, "/run/my home/s", "127.0.0.1:8080", "[::1]:80", "replica-0.models.svc:8080"]
)
def test_addresses_of_every_data_plane_pass(address: str) -> None:
    assert Cluster(V1, (address,)).addresses == (address,)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("timeout_s", float("inf")),
        ("max_body", 0),
        ("reason", "%REQ(X)%"),
    ],
)
def test_a_route_out_of_bounds_is_refused(key: str, value: object) -> None:
    with pytest.raises(InvalidInput):
        Route(E, "latest", None, **{key: value})


def test_a_cluster_needs_a_replica_and_no_replica_twice() -> None:
    for addresses in ((), ("/a", "/a")):
        with pytest.raises(InvalidInput):
            Cluster(V1, addresses)


def test_a_table_refuses_routes_to_nowhere_and_doubles() -> None:
    with pytest.raises(InvalidInput, match="has no replicas"):
        table(V2, V1)
    with pytest.raises(InvalidInput, match="twice"):
        RouteTable((cluster(V1), cluster(V1)))
    with pytest.raises(InvalidInput, match="twice"):
        RouteTable((), (Route(E, "latest", None), Route(E, "latest", None)))


@given(st.lists(st.sampled_from([V1, V2, V3]), unique=True), st.integers(0, 1 << 62))
def test_a_table_survives_json(names: list[str], generation: int) -> None:
    routes = tuple(Route(E, str(i + 1), name, timeout_s=0.5 + i) for i, name in enumerate(names))
    before = RouteTable(tuple(map(cluster, names)), (*routes, Route(E, "latest", None, "stopped")), generation)
    assert RouteTable.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_a_version_that_is_gone_is_stood_in_for_by_the_one_that_took_its_route() -> None:
    known = moves(table(V1, V1), table(V2, V1, V2), (), now_ms=1000, keep_ms=50)
    assert known == (Move(V1, V2, 1050),)
    assert stand_ins([cluster(V1), cluster(V2)], known) == ()
    assert stand_ins([cluster(V2)], known) == (Cluster(V1, cluster(V2).addresses),)


def test_stand_ins_follow_later_moves_and_end_in_time() -> None:
    known = moves(table(V1, V1), table(V2, V1, V2), (), now_ms=1000, keep_ms=50)
    known = moves(table(V2, V2), table(V3, V2, V3), known, now_ms=1010, keep_ms=50)
    assert [c.name for c in stand_ins([cluster(V3)], known)] == [V1, V2]
    assert {c.addresses for c in stand_ins([cluster(V3)], known)} == {cluster(V3).addresses}
    assert moves(table(V3, V3), table(V3, V3), known, now_ms=1060, keep_ms=50) == ()


def test_a_rollback_leaves_no_stand_in_in_a_circle() -> None:
    known = moves(table(V1, V1), table(V2, V1, V2), (), now_ms=0, keep_ms=50)
    known = moves(table(V2, V1, V2), table(V1, V1, V2), known, now_ms=1, keep_ms=50)
    assert stand_ins([cluster(V1)], known) == (Cluster(V2, cluster(V1).addresses),)
    assert stand_ins([cluster(V3)], known) == ()


def test_nobody_stands_in_for_an_endpoint_that_was_stopped() -> None:
    assert moves(table(V1, V1), table(None), (), now_ms=0, keep_ms=50) == ()
