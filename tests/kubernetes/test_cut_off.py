"""A gateway that is cut off from its cluster's API server, or hears only a part of what it says."""

from __future__ import annotations

import base64
import http.client
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import GatewayFailed
from mlflow_domino.gateway.surroundings import WATCHER_PORT
from mlflow_domino.labels import GATEWAY
from tests.conftest import eventually
from tests.kubernetes.site import Site, call
from tests.kubernetes.stage import V1, V2, Cable, Outpost, own_host, upstream

# A gateway's program on this machine, beside the two in the cluster.


@pytest.fixture
def cable(site: Site) -> Iterator[Cable]:
    cable = Cable(site.cluster.server)
    yield cable
    cable.close()


@pytest.fixture
def outpost(site: Site, cable: Cable, tmp_path: Path) -> Iterator[Outpost]:
    outpost = Outpost(site.cluster, tmp_path)
    yield outpost
    outpost.end()
    site.cluster.delete("Lease", f"gateway-{outpost.name}")


def ready(outpost: Outpost) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", outpost.watcher_port, timeout=10)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        return answer.status, answer.read().decode().strip()
    except OSError as error:
        return 0, str(error)
    finally:
        connection.close()


def routed(outpost: Outpost) -> Any:
    status, document = call(f"http://127.0.0.1:{outpost.port}")
    return document.get("result") if status == 200 else status


def test_while_the_api_server_is_away_a_gateway_serves_on_and_then_catches_up(
    site: Site, outpost: Outpost, cable: Cable
) -> None:
    stage = site.stage
    site.stage.clear()
    with upstream(own_host(site.cluster), "1") as one, upstream(own_host(site.cluster), "2") as two:
        for version, address in ((V1, one), (V2, two)):
            stage.version(version, replicas=1)
            stage.addresses(version, address)
        stage.endpoint(V1)
        outpost.start(cable)
        eventually(lambda: ready(outpost) == (200, "ok"), within=120)
        eventually(lambda: routed(outpost) == "1")

        cable.cut()
        stage.endpoint(V2)
        site.entrance.publish()
        assert routed(outpost) == "1"
        assert outpost.process is not None
        envoy = next(p for p in psutil.Process(outpost.process.pid).children() if "envoy" in p.cmdline()[0])
        envoy.kill()
        eventually(lambda: routed(outpost) == "1")
        assert ready(outpost) == (200, "ok"), "others could not be told to do without it"

        outpost.process.send_signal(signal.SIGKILL)
        outpost.process.wait()
        for orphan in [p for p in psutil.process_iter() if str(outpost.folder) in " ".join(_words(p))]:
            orphan.kill()
        outpost.start(cable)
        eventually(lambda: routed(outpost) == "1", within=120)
        eventually(lambda: ready(outpost) == (503, "still reading the records"), within=120)

        cable.mend()
        eventually(lambda: routed(outpost) == "2", within=120)
        eventually(lambda: ready(outpost) == (200, "ok"))
        shown = int(site.cluster.get("ConfigMap", "mlflow-domino-generation")["data"]["generation"])
        eventually(lambda: stage.accepted(outpost.name) == shown)


def _words(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), *(v for k, v in process.environ().items() if k.startswith("DOMINO_"))]
    except psutil.Error:
        return []


def test_a_gateway_that_does_not_hear_of_a_generation_makes_itself_unready_when_others_have_it(
    site: Site, outpost: Outpost, cable: Cable
) -> None:
    may = ["get", "list", "watch"]
    token = account(site.cluster, may)
    outpost.start(cable, token=token)
    eventually(lambda: ready(outpost) == (200, "ok"), within=120)
    account(site.cluster, ["get"])  # its watches end, and cannot be begun again
    cable.cut()
    cable.mend()
    site.entrance.publish()
    eventually(lambda: ready(outpost) == (503, "behind the other gateways"), within=120)
    account(site.cluster, may)
    eventually(lambda: ready(outpost) == (200, "ok"), within=120)
    assert "cannot be followed" in outpost.log


def account(cluster: Cluster, may: list[str]) -> str:
    """Have an account that may do these things to records and addresses, and show a Lease; return its token."""
    name, group = "outpost", "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": may},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": may},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "list", "create", "patch"]},
    ]
    meta = {"name": name}
    reference = {"apiGroup": group, "kind": "Role", "name": name}
    subjects = [{"kind": "ServiceAccount", "name": name, "namespace": cluster.namespace}]
    note = {"name": f"{name}-token", "annotations": {"kubernetes.io/service-account.name": name}}
    for manifest in (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": meta, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": reference,
            "subjects": subjects,
        },
        {"apiVersion": "v1", "kind": "Secret", "metadata": note, "type": "kubernetes.io/service-account-token"},
    ):
        cluster.apply(manifest)
    eventually(lambda: ((cluster.get("Secret", note["name"]) or {}).get("data") or {}).get("token"))
    return base64.b64decode(cluster.get("Secret", note["name"])["data"]["token"]).decode()


def test_gateways_that_are_all_behind_say_so_and_none_gives_up_serving(serving: Site) -> None:
    role = serving.cluster.get("Role", GATEWAY)
    deaf = [{**rule, "verbs": ["get"]} if "configmaps" in rule["resources"] else rule for rule in role["rules"]]
    before = {name: complaints(serving, name) for name in serving.names()}
    serving.cluster.patch("Role", GATEWAY, {"rules": deaf})

    # All before the first generation that one of them does not hear of: what one has and another lacks is another case.
    eventually(lambda: all(complaints(serving, name) > count for name, count in before.items()), within=120)
    failure = _failure(serving, 7)
    assert "took its new routes" in failure
    assert all(name in failure for name in before)
    for name in before:
        assert serving.cluster.proxy(name, WATCHER_PORT, "/ready")[0] == 200
    assert serving.result() == "1"
    serving.entrance.install()
    eventually(lambda: not _failure(serving, 2), within=180)


def complaints(site: Site, pod: str) -> int:
    """Return how often a gateway has said that it cannot follow the records."""
    return site.cluster.pod_log(pod).count("ConfigMaps cannot be followed")


def _failure(site: Site, timeout_s: float) -> str:
    try:
        site.entrance.publish(timeout_s=timeout_s)
    except GatewayFailed as error:
        return str(error)
    return ""
