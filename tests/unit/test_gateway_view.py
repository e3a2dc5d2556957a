"""What a gateway in a cluster makes of the objects that it sees."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_domino.config import Settings
from mlflow_domino.gateway.routes import RouteTable
from mlflow_domino.gateway.view import View
from mlflow_domino.labels import labels
from mlflow_domino.models import Endpoint, RegistrySource, Status, Target, Version
from mlflow_domino.written import to_text

E, F = "e" * 24, "f" * 24
V1, V2 = "1" * 24, "2" * 24


def config_map(name: str, kind: str, **data: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "metadata": {"name": name, "labels": labels(kind)}, "data": data}


def endpoint(endpoint_id: str = E, **fields: Any) -> dict[str, Any]:
    record = Endpoint(endpoint_id, "iris", "k", 0, **fields)
    return config_map(f"endpoint-{endpoint_id}", "endpoint", **{"endpoint.json": to_text(record)})


def version(version_id: str = V1, *, of: str = E, number: int = 1, **fields: Any) -> dict[str, Any]:
    known = {"target": Target.RUNNING, "status": Status.RUNNING, **fields}
    record = Version(version_id, of, number, 0, RegistrySource("models:/m", "models:/m/1", "0"), Settings(), **known)
    return config_map(f"version-{version_id}", "version", **{"version.json": to_text(record)})


def generation(number: int | str, *silent: str) -> dict[str, Any]:
    return config_map("mlflow-domino-generation", "generation", generation=str(number), silent=",".join(silent))


def endpoint_slice(
    version_id: str, *conditions: tuple[str, dict[str, bool]], family: str = "IPv4", name: str = "", moment: int = 1
) -> dict[str, Any]:
    return {
        "kind": "EndpointSlice",
        "metadata": {
            "name": name or f"model-{version_id}-x",
            "labels": {**labels("model"), "kubernetes.io/service-name": f"model-{version_id}"},
            "resourceVersion": str(moment),
        },
        "addressType": family,
        "endpoints": [{"addresses": [a], "conditions": c} for a, c in conditions],
        "ports": [{"name": "http", "port": 8080}],
    }


READY, NOT_READY = {"ready": True}, {"ready": False}
ENDING = {"ready": False, "serving": True, "terminating": True}
ENDED = {"ready": False, "serving": False, "terminating": True}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def view(said: list[str]) -> View:
    return View(said.append)


def fill(view: View, *objects: dict[str, Any]) -> None:
    for kind in ("ConfigMap", "EndpointSlice"):
        view.replace(kind, [one for one in objects if one["kind"] == kind])


def routes(table: RouteTable) -> dict[str, str | None]:
    return {f"{r.endpoint_id[0]}/{r.label}": r.cluster for r in table.routes}


def test_it_is_complete_when_both_kinds_have_been_listed(view: View) -> None:
    assert not view.complete
    view.replace("ConfigMap", [])
    assert not view.complete
    view.replace("EndpointSlice", [])
    assert view.complete


def test_routes_lead_to_ready_replicas_at_their_pods_addresses(view: View) -> None:
    slices = endpoint_slice(V1, ("10.0.0.2", READY), ("10.0.0.1", {}), ("10.0.0.3", NOT_READY), ("10.0.0.4", ENDING))
    fill(view, endpoint(latest=V1), version(), slices, generation(7))
    table = view.sight().table(pytest.fail)
    assert routes(table) == {"e/latest": V1, "e/1": V1}
    assert table.clusters[0].addresses == ("10.0.0.1:8080", "10.0.0.2:8080")
    assert not table.clusters[0].health_check, "readiness comes from the cluster"
    assert table.generation == 7


def test_replicas_of_several_slices_are_one_cluster_and_a_pod_with_two_addresses_is_one_replica(view: View) -> None:
    fill(
        view,
        endpoint(latest=V1),
        version(),
        endpoint_slice(V1, ("10.0.0.1", READY), name="a"),
        endpoint_slice(V1, ("10.0.0.2", READY), name="b"),
        endpoint_slice(V1, ("fd00::1", READY), ("fd00::2", READY), family="IPv6", name="c"),
    )
    assert view.sight().ready[V1] == ("10.0.0.1:8080", "10.0.0.2:8080")


def test_ipv6_addresses_are_written_as_urls_have_them(view: View) -> None:
    fill(view, endpoint(latest=V1), version(), endpoint_slice(V1, ("fd00::1", READY), family="IPv6"))
    assert view.sight().table(pytest.fail).clusters[0].addresses == ("[fd00::1]:8080",)


def test_while_no_replica_is_ready_those_that_end_and_still_serve_get_the_requests(view: View) -> None:
    fill(view, endpoint(latest=V1), version(), endpoint_slice(V1, ("10.0.0.1", ENDING), ("10.0.0.2", ENDED)))
    assert view.sight().table(pytest.fail).clusters[0].addresses == ("10.0.0.1:8080",)


@pytest.mark.parametrize("conditions", [NOT_READY, ENDED])
def test_without_a_replica_that_can_be_reached_callers_get_503_and_the_table_stands(
    view: View, conditions: dict[str, bool]
) -> None:
    fill(view, endpoint(latest=V1), version(), endpoint_slice(V1, ("10.0.0.1", conditions)))
    table = view.sight().table(pytest.fail)
    assert table.clusters == ()
    assert {(r.label, r.cluster, r.reason) for r in table.routes} == {
        ("latest", None, "not ready"),
        ("1", None, "not ready"),
    }


def test_a_version_that_finishes_its_requests_keeps_its_cluster_without_a_route(view: View) -> None:
    fill(
        view,
        endpoint(latest=V2),
        version(V1, status=Status.STOPPED),
        version(V2, number=2),
        endpoint_slice(V1, ("10.0.0.1", READY)),
        endpoint_slice(V2, ("10.0.0.2", READY)),
    )
    table = view.sight().table(pytest.fail)
    assert [c.name for c in table.clusters] == [V1, V2]
    assert routes(table) == {"e/latest": V2, "e/2": V2}


def test_records_applied_by_hand_are_routed_without_a_generation(view: View) -> None:
    fill(view, endpoint(latest=V1), version(), endpoint_slice(V1, ("10.0.0.1", READY)))
    sight = view.sight()
    assert sight.generation == 0
    assert routes(sight.table(pytest.fail))["e/latest"] == V1


def test_a_damaged_record_changes_nothing_and_is_named(view: View, said: list[str]) -> None:
    fill(view, endpoint(latest=V1), version(), endpoint_slice(V1, ("10.0.0.1", READY)))
    before = view.sight().table(pytest.fail)
    view.change("MODIFIED", config_map(f"version-{V1}", "version", **{"version.json": "{"}))
    view.change("MODIFIED", config_map(f"endpoint-{E}", "endpoint"))
    view.change("MODIFIED", generation("many"))
    assert view.sight().table(pytest.fail) == before
    assert [line.split()[1] for line in said] == [f"version-{V1}", f"endpoint-{E}", "mlflow-domino-generation"]


def test_a_record_cannot_pass_for_another(view: View, said: list[str]) -> None:
    fill(view, {**endpoint(F), "metadata": endpoint(E)["metadata"]})
    assert view.sight().world.endpoints == ()
    assert len(said) == 1


def test_an_endpoint_whose_records_make_no_sense_costs_only_its_own_routes(view: View, said: list[str]) -> None:
    broken = endpoint_slice(V2, ("10.0.0.2", READY))
    broken["ports"][0]["port"] = 123456
    fill(
        view,
        endpoint(E, latest=V1),
        endpoint(F, latest=V2),
        version(V1),
        version(V2, of=F),
        endpoint_slice(V1, ("10.0.0.1", READY)),
        broken,
    )
    assert routes(view.sight().table(said.append)) == {"e/latest": V1, "e/1": V1}
    assert len(said) == 1
    assert F in said[0]


def test_deleted_objects_are_gone_and_a_list_replaces_everything(view: View) -> None:
    fill(view, endpoint(latest=V1), version(), endpoint_slice(V1, ("10.0.0.1", READY)))
    view.change("DELETED", version())
    assert routes(view.sight().table(pytest.fail)) == {"e/latest": None}
    view.replace("ConfigMap", [endpoint(F)])
    assert routes(view.sight().table(pytest.fail)) == {"f/latest": None}


def test_an_older_event_does_not_undo_what_was_listed_since(view: View) -> None:
    view.replace("EndpointSlice", [])
    view.change("MODIFIED", endpoint_slice(V1, ("10.0.0.1", READY), moment=10))
    view.change("MODIFIED", endpoint_slice(V1, moment=9))
    assert view.sight().ready == {V1: ("10.0.0.1:8080",)}
    view.change("MODIFIED", endpoint_slice(V1, moment=11))
    assert view.sight().ready == {}


def test_a_version_to_which_a_route_moves_is_late_until_all_its_replicas_are_known(view: View) -> None:
    fill(
        view,
        endpoint(latest=V1),
        version(V1),
        version(V2, number=2, status=Status.STARTING, replicas=2),
        endpoint_slice(V1, ("10.0.0.1", READY)),
    )
    sight = view.sight()
    assert sight.late(RouteTable()) == set()
    before = sight.table(pytest.fail)
    view.change("MODIFIED", version(V2, number=2, replicas=2))
    view.change("MODIFIED", endpoint(latest=V2))
    view.change("ADDED", endpoint_slice(V2, ("10.0.0.2", READY)))
    assert view.sight().late(before) == {V2}
    view.change("MODIFIED", endpoint_slice(V2, ("10.0.0.2", READY), ("10.0.0.3", READY), moment=2))
    assert view.sight().late(before) == set()
    view.change("MODIFIED", endpoint_slice(V2, moment=3))
    assert view.sight().late(view.sight().table(pytest.fail)) == {V2}


def test_a_silenced_endpoint_refuses_requests_while_its_versions_finish_theirs(view: View) -> None:
    fill(view, endpoint(latest=V1), version(), endpoint_slice(V1, ("10.0.0.1", READY)), generation(1, E, F))
    table = view.sight().table(pytest.fail)
    assert {(r.label, r.cluster, r.reason) for r in table.routes} == {("latest", None, "stopped")}
    assert [c.name for c in table.clusters] == [V1]
    view.change("MODIFIED", generation(2))
    assert routes(view.sight().table(pytest.fail))["e/latest"] == V1


def test_whoever_waits_is_woken_by_a_change(view: View) -> None:
    changes = view.changes
    view.replace("ConfigMap", [])
    view.wait(changes, None)
    assert view.changes > changes
