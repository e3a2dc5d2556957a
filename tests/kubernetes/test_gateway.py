"""The gateway in real clusters, before small real pods."""

from __future__ import annotations

import json
import subprocess
import urllib.parse

import pytest

from mlflow_domino.errors import Conflict, DominoError, GatewayFailed, InvalidInput
from mlflow_domino.gateway.surroundings import PORT
from mlflow_domino.labels import GATEWAY, labels
from mlflow_domino.models import Status, Target
from tests.conftest import eventually
from tests.kubernetes.conftest import REGISTRY
from tests.kubernetes.site import Site
from tests.kubernetes.stage import V1, V2, E


def test_an_update_moves_every_gateway_before_the_old_version_ends_and_no_request_fails(serving: Site) -> None:
    stage, entrance = serving.stage, serving.entrance
    slow = serving.load(body={"sleep": 6}, rate=2)
    with serving.load().running() as load, slow.running():
        stage.version(V2, status=Status.STARTING)
        stage.replicas(V2, 2)
        stage.version(V2)
        stage.endpoint(V2)
        entrance.publish()
        assert [serving.result() for _ in range(20)] == ["2"] * 20, "every gateway has moved"
        stage.version(V1, status=Status.STOPPED)
        entrance.publish()
        eventually(lambda: entrance.active(V1) == 0, within=120)
        stage.version(V1, status=Status.STOPPED, target=Target.STOPPED)
        entrance.publish()
        serving.cluster.delete("Deployment", f"model-{V1}")
        eventually(lambda: load.results['"2"'] > 300, within=120)
    assert not load.failures
    assert not slow.failures
    assert load.results['"1"'] > 0


def test_a_replica_that_is_deleted_or_added_changes_the_addresses_without_a_failed_request(serving: Site) -> None:
    with serving.load().running() as load:
        for _ in range(2):
            pods = {pod["metadata"]["name"] for pod in serving.cluster.list("Pod", labels("model"))}
            serving.cluster.delete("Pod", sorted(pods)[0])
            eventually(lambda gone=sorted(pods)[0]: serving.cluster.get("Pod", gone) is None, within=180)
            eventually(lambda: serving.stage.ready(V1) == 2, within=180)
    assert not load.failures


def test_a_gateway_that_is_deleted_finishes_its_requests_and_sends_its_callers_to_others(serving: Site) -> None:
    slow = serving.load(body={"sleep": 8}, rate=2)
    with serving.load().running() as load, slow.running():
        leaving = serving.names()[0]
        serving.cluster.delete("Pod", leaving)
        eventually(lambda: serving.cluster.get("Pod", leaving) is None, within=180)
        serving.entrance.publish()
    assert not load.failures
    assert not slow.failures
    eventually(lambda: serving.entrance.alive() and len(serving.names()) == 2, within=180)


def test_a_gateway_of_another_release_is_rolled_without_a_failed_request(serving: Site) -> None:
    before = serving.names()
    other = serving.entrance_of(gateway_image=serving.image)
    with serving.load().running() as load:
        assert other.ensure({})
        assert other.deployed() == serving.image
        assert not set(serving.names()) & set(before)
        assert not other.ensure({}), "it is there"
        assert not serving.entrance.ensure({}), "somebody's own image is not replaced"
        serving.entrance.install()
    assert serving.entrance.deployed() == serving.entrance.release()
    assert not load.failures


def test_a_gateway_that_cannot_start_says_why_and_the_one_before_goes_on(serving: Site) -> None:
    broken = serving.entrance_of(gateway_image=f"{REGISTRY}/no-such-image:1")
    before = serving.names()
    with pytest.raises(GatewayFailed, match=r"ImagePullBackOff: .*no-such-image"):
        broken.install()
    assert serving.result() == "1"
    eventually(lambda: serving.names() == before, within=180)
    assert serving.entrance.deployed() == serving.entrance.release()


def test_a_node_port_that_is_taken_is_named_with_its_setting(serving: Site) -> None:
    port = urllib.parse.urlsplit(serving.entrance.url()).port
    spec = {"type": "NodePort", "ports": [{"port": 80}]}
    taken = serving.cluster.create(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "other"}, "spec": spec}
    )["spec"]["ports"][0]["nodePort"]
    with pytest.raises(InvalidInput, match=rf"node port {taken} is taken.*node_port.*data_planes\.kube"):
        serving.entrance_of(node_port=taken).install()
    serving.cluster.delete("Service", "other")
    assert urllib.parse.urlsplit(serving.entrance_of().url()).port == port
    assert serving.result() == "1"


def test_a_killed_envoy_is_back_with_the_same_routes(serving: Site) -> None:
    pod = serving.pods()[0]["metadata"]["name"]
    inside = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    if b"_bin/envoy" in open(f"/proc/{pid}/cmdline", "rb").read().split(bytes(1))[0]:
        print(pid)
        if KILLED: os.kill(int(pid), signal.SIGKILL)
"""

    def run(killed: bool) -> list[str]:
        python = "/opt/domino/environment/bin/python"
        program = inside.replace("KILLED", str(killed))
        where = ("--context", serving.cluster.context, "-n", serving.cluster.namespace)
        argv = ["kubectl", *where, "exec", pod, "-c", "gateway", "--", python, "-c", program]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()

    (before,) = run(killed=True)

    def answers() -> bool:
        status, _, body = serving.cluster.proxy(pod, PORT, f"/models/{E}/latest/openapi.json")
        return status == 200 and json.loads(body)["result"] == "1"

    def again() -> bool:
        try:
            return answers()
        except DominoError:
            return False

    eventually(again, within=60)
    (after,) = run(killed=False)
    assert after != before
    restarts = serving.cluster.get("Pod", pod)["status"]["containerStatuses"][0]["restartCount"]
    assert restarts == 0, "its container is the same"


def test_a_version_without_a_ready_replica_answers_503_until_it_has_one(serving: Site) -> None:
    scaled = {"spec": {"replicas": 0}}
    serving.cluster.patch("Deployment", f"model-{V1}", scaled)
    eventually(lambda: "no version of the endpoint is ready yet" in str(serving.call()), within=60)
    serving.stage.replicas(V1, 2)
    eventually(lambda: serving.result() == "1", within=60)


def test_records_applied_by_hand_are_routed_without_the_plugin(site: Site) -> None:
    site.stage.version(V2, replicas=1)
    site.stage.endpoint(V2)
    site.stage.replicas(V2, 1)
    eventually(lambda: site.result() == "2", within=60)


def test_a_silenced_endpoint_answers_503_until_the_next_publish(serving: Site) -> None:
    serving.entrance.publish([E])
    assert serving.result() == 503
    assert serving.entrance.quiet()
    serving.entrance.publish()
    assert serving.result() == "1"
    assert not serving.entrance.quiet()


def test_the_metrics_of_replicas_and_gateway_are_for_whoever_has_the_management_token(serving: Site) -> None:
    assert serving.call("/metrics")[0] in (401, 405)
    secret = serving.cluster.get("Secret", GATEWAY)
    assert set(secret["data"]) == {"management-token"}


def test_it_is_not_uninstalled_while_endpoints_exist(serving: Site) -> None:
    with pytest.raises(Conflict, match="1 endpoint"):
        serving.entrance.uninstall()
    assert serving.result() == "1"


# Last: it takes the gateway away.


def test_it_goes_whole_and_comes_back_at_the_same_address(site: Site) -> None:
    site.stage.clear()
    url = site.entrance.url()
    site.entrance.remove()
    assert not site.entrance.alive()
    assert not site.running(), "whatever the cluster still keeps of its pods"
    site.entrance.publish()  # nobody is waited for
    assert site.entrance.ensure({})
    assert site.entrance.url() == url
    assert site.entrance.uninstall()
    assert not site.entrance.uninstall()
    kinds = ("Deployment", "Service", "Secret", "ConfigMap", "Role", "RoleBinding", "ServiceAccount", "Lease")
    for kind in (*kinds, "PodDisruptionBudget"):
        assert not site.cluster.list(kind, labels("gateway")), kind
