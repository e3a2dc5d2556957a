from __future__ import annotations

import copy
from typing import Any

import pytest

from mlflow_domino.dialect import fitted, kind_of, replacement, stable
from mlflow_domino.errors import Unsupported

SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "a"},
    "addressType": "IPv4",
    "endpoints": [
        {"addresses": ["10.0.0.1"], "conditions": {"ready": True}, "nodeName": "n", "zone": "z"},
        {"addresses": ["10.0.0.2"], "deprecatedTopology": {"x": "y"}},
    ],
}


def test_slices_go_to_an_older_server_and_back_unchanged() -> None:
    before = copy.deepcopy(SLICE)
    written = fitted(SLICE, "discovery.k8s.io/v1beta1")
    assert written["endpoints"][0]["topology"] == {"kubernetes.io/hostname": "n", "topology.kubernetes.io/zone": "z"}
    assert "nodeName" not in written["endpoints"][0]
    assert stable(written) == SLICE == before


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "CronJob", "HorizontalPodAutoscaler", "EndpointSlice"])
def test_every_older_version_reads_as_the_stable_one(kind: str) -> None:
    known = kind_of(kind)
    for version in known.versions:
        assert stable({"apiVersion": version, "kind": kind})["apiVersion"] == known.versions[0]
    foreign = {"apiVersion": "example.com/v1", "kind": kind}
    assert stable(foreign) == foreign


def test_a_kind_that_we_do_not_use_is_refused() -> None:
    with pytest.raises(Unsupported, match="'Virtue'"):
        kind_of("Virtue")


def test_plain_values_of_a_secret_are_encoded_and_join_the_others() -> None:
    made = fitted({"kind": "Secret", "data": {"a": "MQ=="}, "stringData": {"b": "ü"}}, "v1")
    assert made == {"apiVersion": "v1", "kind": "Secret", "data": {"a": "MQ==", "b": "w7w="}}


def service(kind: str, **spec: Any) -> dict[str, Any]:
    ports = [{"port": 80}, {"port": 443, "nodePort": 30443}]
    return {"kind": "Service", "metadata": {"name": "a"}, "spec": {"type": kind, "ports": ports, **spec}}


def test_a_service_keeps_what_was_allocated_while_its_type_needs_it() -> None:
    found = service("LoadBalancer", clusterIP="10.0.0.1", healthCheckNodePort=31000)
    found["spec"]["ports"] = [{"port": 80, "nodePort": 30080}, {"port": 443, "nodePort": 30444}]
    wanted = service("LoadBalancer")
    before = copy.deepcopy((found, wanted))
    made = replacement(found, wanted)["spec"]
    assert made["ports"] == [{"port": 80, "nodePort": 30080}, {"port": 443, "nodePort": 30443}]
    assert (made["clusterIP"], made["healthCheckNodePort"]) == ("10.0.0.1", 31000)
    assert "healthCheckNodePort" not in replacement(found, service("NodePort"))["spec"]
    plain = replacement(found, {**service("ClusterIP"), "spec": {"ports": [{"port": 80}]}})["spec"]
    assert plain == {"ports": [{"port": 80}], "clusterIP": "10.0.0.1"}
    assert (found, wanted) == before


def test_labels_and_annotations_of_others_stay_and_ours_follow_the_manifest() -> None:
    ours, theirs = {"mlflow-domino/kind": "model"}, {"example.com/team": "a"}
    found = {
        "kind": "Role",
        "metadata": {"name": "a", "uid": "u", "labels": {**theirs, "mlflow-domino/old": "x"}, "annotations": theirs},
    }
    made = replacement(found, {"kind": "Role", "metadata": {"name": "a", "labels": ours}, "rules": []})
    assert made["metadata"] == {"name": "a", "uid": "u", "labels": {**theirs, **ours}, "annotations": theirs}


def test_what_is_beside_the_spec_stays_but_for_the_data_of_maps() -> None:
    account = {"kind": "ServiceAccount", "metadata": {"name": "a"}, "secrets": [{"name": "token"}]}
    assert replacement(account, {"kind": "ServiceAccount", "metadata": {"name": "a"}}) == account
    found = {"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}, "binaryData": {"b": "MQ=="}}
    assert replacement(found, {"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "y"}}) == {
        "kind": "ConfigMap",
        "metadata": {"name": "a"},
        "data": {"x": "y"},
    }
