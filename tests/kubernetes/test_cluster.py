from __future__ import annotations

import copy
import json
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflow_domino.cluster import Cluster
from mlflow_domino.dialect import Manifest
from mlflow_domino.engine import Engine
from mlflow_domino.errors import (
    AlreadyExists,
    Conflict,
    DominoError,
    Forbidden,
    InvalidInput,
    NotFound,
    Unavailable,
    Unreachable,
)
from tests.conftest import eventually
from tests.kubernetes.access import account, kubeconfig
from tests.kubernetes.conftest import REGISTRY

OURS = {"test": "cluster"}


def config_map(name: str = "a", **data: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": OURS}, "data": data}


def deployment(replicas: int | None = 0, image: str = "busybox") -> Manifest:
    spec: Manifest = {
        "selector": {"matchLabels": OURS},
        "template": {
            "metadata": {"labels": OURS, "annotations": {"a": "1"}},
            "spec": {"containers": [{"name": "model", "image": image, "env": [{"name": "A", "value": "1"}]}]},
        },
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": OURS}, "spec": spec}


def service(kind: str = "NodePort") -> Manifest:
    spec = {"type": kind, "selector": OURS, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "labels": OURS}, "spec": spec}


def disruption_budget() -> Manifest:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": OURS}}
    meta = {"name": "a", "labels": OURS}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": spec}


@pytest.fixture(autouse=True)
def _clean(namespace: Cluster) -> Iterator[None]:
    yield
    for kind in ("Deployment", "Service", "PodDisruptionBudget", "ResourceQuota", "ConfigMap", "Secret"):
        for one in namespace.list(kind, OURS):
            namespace.delete(kind, one["metadata"]["name"])


def version_of(one: Manifest | None) -> str:
    assert one is not None
    return str(one["metadata"]["resourceVersion"])


# ---- objects -------------------------------------------------------------------------------------------------------


def test_an_object_that_is_not_there_is_none_and_its_deletion_no_error(namespace: Cluster) -> None:
    assert namespace.get("ConfigMap", "none") is None
    namespace.delete("ConfigMap", "none")
    with pytest.raises(NotFound, match="There is no ConfigMap 'none'"):
        namespace.patch("ConfigMap", "none", {"data": {}})


def test_an_object_is_made_once_and_replaced_by_who_read_it_last(namespace: Cluster) -> None:
    made = namespace.create(config_map(k="v"))
    with pytest.raises(AlreadyExists, match="ConfigMap 'a' exists already"):
        namespace.create(config_map())
    namespace.replace({**made, "data": {"k": "w"}})
    with pytest.raises(Conflict, match="Somebody else changed ConfigMap 'a'"):
        namespace.replace({**made, "data": {"k": "x"}})
    with pytest.raises(Conflict):
        namespace.delete("ConfigMap", "a", uid=made["metadata"]["uid"], resource_version=version_of(made))
    with pytest.raises(ValueError, match="resourceVersion"):
        namespace.replace(config_map())
    found = namespace.get("ConfigMap", "a")
    assert found is not None
    assert found["data"] == {"k": "w"}


def test_a_dry_run_has_the_server_check_and_writes_nothing(namespace: Cluster) -> None:
    assert namespace.create(config_map(k="v"), dry_run=True)["data"] == {"k": "v"}
    assert namespace.get("ConfigMap", "a") is None
    with pytest.raises(InvalidInput, match=r"refuses to create ConfigMap 'a': .*data\[k k\]"):
        namespace.create({**config_map(), "data": {"k k": "v"}}, dry_run=True)


def test_a_list_has_all_pages_and_only_what_has_the_labels(namespace: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_domino.cluster._PAGE", 2)
    for name in "abcde":
        namespace.create(config_map(name))
    namespace.create({**config_map("other"), "metadata": {"name": "other"}})
    found = namespace.list("ConfigMap", OURS)
    assert [one["metadata"]["name"] for one in found] == list("abcde")
    assert {(one["kind"], one["apiVersion"]) for one in found} == {("ConfigMap", "v1")}
    assert found.resource_version
    assert namespace.list("ConfigMap", "test in (none)") == []
    assert len(namespace.list("ConfigMap", OURS, fields="metadata.name=c")) == 1
    namespace.delete("ConfigMap", "other")


def test_a_patch_merges_or_replaces_lists_as_it_is_asked(namespace: Cluster) -> None:
    namespace.create(deployment())
    containers = {"spec": {"template": {"spec": {"containers": [{"name": "model", "image": "other"}]}}}}
    merged = namespace.patch("Deployment", "a", containers, strategic=True)
    assert merged["spec"]["template"]["spec"]["containers"][0]["env"] == [{"name": "A", "value": "1"}]
    replaced = namespace.patch("Deployment", "a", containers)
    assert "env" not in replaced["spec"]["template"]["spec"]["containers"][0]
    by_path = namespace.patch("Deployment", "a", [{"op": "replace", "path": "/spec/paused", "value": True}])
    assert by_path["spec"]["paused"] is True


# ---- apply ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manifest", [config_map(k="v"), deployment(), service(), service("ClusterIP"), disruption_budget()], ids=lambda m: m["kind"]
)  # fmt: skip
def test_applying_the_same_again_writes_nothing(namespace: Cluster, manifest: Manifest) -> None:
    before = copy.deepcopy(manifest)
    namespace.apply(manifest)

    def unchanged() -> bool:  # once controllers have had their say
        return version_of(namespace.apply(manifest)) == version_of(namespace.apply(manifest))

    eventually(unchanged)
    assert manifest == before


def test_applying_takes_away_what_the_manifest_no_longer_says(namespace: Cluster) -> None:
    namespace.apply(config_map(k="v", old="x"))
    assert namespace.apply(config_map(k="w"))["data"] == {"k": "w"}
    assert "data" not in namespace.apply({k: v for k, v in config_map().items() if k != "data"})
    namespace.apply(deployment())
    less = deployment()
    del less["spec"]["template"]["spec"]["containers"][0]["env"]
    assert "env" not in namespace.apply(less)["spec"]["template"]["spec"]["containers"][0]


def test_applying_a_secret_takes_away_its_old_keys(namespace: Cluster) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "labels": OURS}}
    namespace.apply({**secret, "stringData": {"old": "1", "k": "v"}})
    assert namespace.apply({**secret, "stringData": {"k": "w"}})["data"] == {"k": "dw=="}


def test_applying_keeps_what_others_and_the_server_said(namespace: Cluster) -> None:
    made = namespace.apply(service())
    namespace.patch("Service", "a", {"metadata": {"labels": {"team": "a"}, "annotations": {"mlflow-domino/old": "1"}}})
    applied = namespace.apply(service())
    assert applied["metadata"]["labels"] == {**OURS, "team": "a"}
    assert "annotations" not in applied["metadata"]
    assert applied["spec"] == made["spec"]
    assert "nodePort" not in namespace.apply(service("ClusterIP"))["spec"]["ports"][0]


def test_applying_keeps_the_number_of_replicas_that_it_does_not_say(namespace: Cluster) -> None:
    namespace.apply(deployment(0))
    namespace.patch("Deployment", "a", {"spec": {"replicas": 0, "template": {"metadata": {"annotations": {"b": "2"}}}}})
    applied = namespace.apply(deployment(None))
    assert applied["spec"]["replicas"] == 0
    assert applied["spec"]["template"]["metadata"]["annotations"] == {"a": "1", "b": "2"}


def test_a_field_that_cannot_be_changed_is_named(namespace: Cluster) -> None:
    namespace.apply(deployment())
    other = deployment()
    other["spec"]["selector"]["matchLabels"] = other["spec"]["template"]["metadata"]["labels"] = {"x": "y"}
    with pytest.raises(InvalidInput, match=r"spec\.selector: .*field is immutable"):
        namespace.apply(other)


def test_changes_at_once_are_all_applied(namespace: Cluster) -> None:
    together, failures = threading.Barrier(4), []

    def apply(n: int) -> None:
        together.wait()
        try:
            namespace.patch("ConfigMap", "a", {"metadata": {"labels": {f"l{n}": "x"}}}) if n % 2 else None
            namespace.apply(config_map(k="v"))
        except DominoError as error:
            failures.append(error)

    namespace.create(config_map())
    threads = [threading.Thread(target=apply, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = namespace.get("ConfigMap", "a")
    assert found is not None
    assert failures == []
    assert found["data"] == {"k": "v"}
    assert {"l1", "l3"} <= set(found["metadata"]["labels"])


def test_an_object_that_is_being_deleted_is_made_again_when_it_is_gone(namespace: Cluster) -> None:
    made = namespace.apply({**config_map(), "metadata": {"name": "a", "labels": OURS, "finalizers": ["example.com/x"]}})
    namespace.delete("ConfigMap", "a")
    applied: list[Manifest] = []
    thread = threading.Thread(target=lambda: applied.append(namespace.apply(config_map(k="v"))))
    thread.start()
    namespace.patch("ConfigMap", "a", {"metadata": {"finalizers": None}})
    thread.join()
    assert applied[0]["metadata"]["uid"] != made["metadata"]["uid"]


# ---- versions of the API -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "EndpointSlice", "CronJob", "HorizontalPodAutoscaler"])
def test_a_kind_is_served_in_the_stable_version_or_else_an_older_one(namespace: Cluster, kind: str) -> None:
    group, version = namespace.served(kind).split("/")
    _, minor = namespace.version()
    since = {"PodDisruptionBudget": 21, "EndpointSlice": 21, "CronJob": 21, "HorizontalPodAutoscaler": 23}[kind]
    assert ("beta" in version) == (minor < since)
    assert group in ("policy", "discovery.k8s.io", "batch", "autoscaling")


def test_objects_are_of_the_stable_version_whatever_the_server_serves(namespace: Cluster) -> None:
    assert namespace.apply(disruption_budget())["apiVersion"] == "policy/v1"
    assert namespace.list("PodDisruptionBudget", OURS)[0]["apiVersion"] == "policy/v1"
    assert next(namespace.watch("PodDisruptionBudget", OURS, timeout_s=5))[1]["apiVersion"] == "policy/v1"
    assert namespace.fitted(disruption_budget())["apiVersion"] == namespace.served("PodDisruptionBudget")


def test_slices_of_a_service_read_alike_on_every_server(namespace: Cluster) -> None:
    node = namespace.list("Node")[0]["metadata"]["name"]
    meta = {"name": "a", "labels": {**OURS, "kubernetes.io/service-name": "a"}}
    wanted = {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.1.2.3"], "conditions": {"ready": True}, "nodeName": node, "zone": "z"}],
    }  # fmt: skip
    namespace.apply(wanted)
    namespace.apply(wanted)
    found = namespace.list("EndpointSlice", OURS)[0]
    namespace.delete("EndpointSlice", "a")
    endpoint = found["endpoints"][0]
    assert {k: endpoint[k] for k in wanted["endpoints"][0]} == wanted["endpoints"][0]  # type: ignore[index]


def test_nothing_is_left_in_the_folder_of_temporary_files_for_others_to_read(namespace: Cluster) -> None:
    namespace.served("CronJob")
    found = [p for p in Path("/tmp").glob("osrcp-*") if p.stat().st_mode & stat.S_IROTH]
    assert found == []


# ---- watching ------------------------------------------------------------------------------------------------------


def test_a_watch_goes_on_where_a_list_ended(namespace: Cluster) -> None:
    namespace.create(config_map("before"))
    moment = namespace.list("ConfigMap", OURS).resource_version
    namespace.create(config_map("a"))
    namespace.patch("ConfigMap", "a", {"data": {"k": "v"}})
    namespace.delete("ConfigMap", "a")
    namespace.create({**config_map("other"), "metadata": {"name": "other"}})
    namespace.delete("ConfigMap", "other")
    seen = [
        (what, one["metadata"]["name"])
        for what, one in namespace.watch("ConfigMap", OURS, resource_version=moment, timeout_s=1)
        if what != "BOOKMARK"
    ]
    assert seen == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_a_watch_without_a_beginning_shows_what_is_there_and_then_what_happens(namespace: Cluster) -> None:
    namespace.create(config_map("a"))
    watch = namespace.watch("ConfigMap", OURS, timeout_s=30)
    assert next(watch)[0] == "ADDED"
    namespace.delete("ConfigMap", "a")
    assert next(watch)[0] == "DELETED"
    watch.close()
    assert namespace.list("ConfigMap", OURS) == []


# ---- pods ----------------------------------------------------------------------------------------------------------

PROGRAM = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        code = 404 if "missing" in self.path else 503 if "busy" in self.path else 200
        body = self.path.encode()
        self.send_response(code)
        self.send_header("X-Domino-Tokens", "abc")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
if not os.path.exists("/tmp/again"):
    open("/tmp/again", "w").close()
print("1\\n2\\n3 \\xff", flush=True)
http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def pod(namespace: Cluster) -> Iterator[str]:
    """A pod that answers over HTTP."""
    engine, image = Engine(), f"{REGISTRY}/test-cluster/python:3.11"
    try:
        engine.tag("python:3.11-slim-bookworm", image)
        engine.push(image, lambda _: None)
    except DominoError as error:
        pytest.skip(f"no image for a pod: {error}")
    engine.remove_image(image)  # the registry has it
    container = {"name": "model", "image": image, "command": ["python", "-c", PROGRAM]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    namespace.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec})

    def ready() -> bool:
        found = namespace.get("Pod", "pod")
        assert found is not None
        return any(s["ready"] for s in found["status"].get("containerStatuses", ()))

    eventually(ready, within=120)
    yield "pod"
    namespace.delete("Pod", "pod")


def test_a_pod_is_asked_through_the_server(namespace: Cluster, pod: str) -> None:
    eventually(lambda: answers(namespace, pod))
    status, headers, body = namespace.proxy(pod, 8080, "/active/a%20b?x=1&y=2%263")
    assert (status, body) == (200, b"/active/a%20b?x=1&y=2%263")
    assert headers["X-Domino-Tokens"] == "abc"
    assert namespace.proxy(pod, 8080, "/missing")[::2] == (404, b"/missing")
    assert namespace.proxy(pod, 8080, "/busy")[::2] == (503, b"/busy")


def answers(namespace: Cluster, pod: str) -> bool:
    try:
        return namespace.proxy(pod, 8080, "/")[0] == 200
    except Unavailable:
        return False


def test_a_pod_that_does_not_answer_or_is_not_there_is_told_apart(namespace: Cluster, pod: str) -> None:
    with pytest.raises(Unavailable, match=r"The pod 'pod' .* does not answer on port 8081"):
        namespace.proxy(pod, 8081, "/")
    with pytest.raises(NotFound, match="no Pod 'none'"):
        namespace.proxy("none", 8080, "/")


def test_the_log_of_a_pod_is_its_last_lines(namespace: Cluster, pod: str) -> None:
    eventually(lambda: namespace.pod_log(pod))
    assert namespace.pod_log(pod, "model").splitlines()[:2] == ["1", "2"]
    assert namespace.pod_log(pod, tail=1).startswith("3 ")
    assert namespace.pod_log(pod, previous=True) == ""
    assert namespace.pod_log(pod, "none") == ""
    assert namespace.pod_log("none") == ""


def test_events_tell_what_happened_to_an_object(namespace: Cluster, pod: str) -> None:
    found = namespace.get("Pod", pod)
    assert found is not None
    reasons = [event["reason"] for event in namespace.events(found)]
    assert reasons[0] == "Scheduled"
    assert reasons[-1] == "Started"
    assert namespace.events({**found, "metadata": {**found["metadata"], "uid": "another"}}) == []


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_a_namespace_that_is_not_there_is_named_with_the_command_that_makes_it(namespace: Cluster) -> None:
    nowhere = Cluster(namespace.context, "test-nowhere")
    with pytest.raises(NotFound, match="kubectl create namespace test-nowhere"):
        nowhere.apply(config_map())
    assert nowhere.list("ConfigMap") == []
    nowhere.close()


def test_a_quota_that_is_used_up_is_told_in_the_servers_words(namespace: Cluster) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "a", "labels": OURS}}
    namespace.create({**quota, "spec": {"hard": {"services": "0"}}})

    def refused() -> str:
        try:
            namespace.create(service(), dry_run=True)
        except Forbidden as error:
            return error.message
        return ""

    eventually(lambda: "exceeded quota: a" in refused())
    assert "refuses to create Service 'a'" in refused()
    assert "no right" not in refused()


def test_a_node_port_that_is_taken_is_told_with_its_field(namespace: Cluster) -> None:
    port = namespace.apply(service())["spec"]["ports"][0]["nodePort"]
    other = service()
    other["metadata"]["name"] = "b"
    other["spec"]["ports"][0]["nodePort"] = port
    with pytest.raises(InvalidInput, match=rf"spec\.ports\[0\]\.nodePort: .*{port}.*allocated"):
        namespace.create(other)


def test_a_right_is_known_before_it_is_needed(namespace: Cluster, tmp_path: Path) -> None:
    assert namespace.may("create", "Deployment")
    assert namespace.may("get", "Pod", "proxy")
    rules = [{"apiGroups": ["", "apps"], "resources": ["pods/proxy", "configmaps", "deployments"], "verbs": ["get"]}]
    limited = account(namespace, tmp_path, "limited", rules)
    eventually(lambda: limited.may("get", "ConfigMap"))
    assert limited.may("get", "Pod", "proxy")
    assert not limited.may("get", "Pod")
    assert not limited.may("create", "Deployment")
    with pytest.raises(Forbidden, match=r"no right to create deployments .*apiGroups \['apps'\]"):
        limited.apply(deployment())
    with pytest.raises(Forbidden, match=r"no right to watch configmaps"):
        next(limited.watch("ConfigMap"))
    with pytest.raises(Forbidden, match=r"no right to create pods/proxy"):
        limited.proxy("none", 8080, "/", method="POST")
    limited.close()


def test_credentials_that_are_not_accepted_are_said(namespace: Cluster, tmp_path: Path) -> None:
    connection = namespace._transport.connection
    authority = connection.client.configuration.ssl_ca_cert
    stranger = Cluster(kubeconfig=kubeconfig(tmp_path / "k", connection.server, token="hunter2", authority=authority))
    with pytest.raises(Forbidden, match=r"The cluster 'own' \(https://.*\) does not accept your credentials") as caught:
        stranger.get("ConfigMap", "a")
    assert "hunter2" not in str(caught.value)
    stranger.close()


def test_a_server_whose_certificate_nobody_vouches_for_is_not_talked_to(namespace: Cluster, tmp_path: Path) -> None:
    unknown = Cluster(kubeconfig=kubeconfig(tmp_path / "k", namespace.server))
    with pytest.raises(Unreachable, match=r"TLS failed \(.*certificate"):
        unknown.get("ConfigMap", "a")
    unknown.close()


def test_a_secret_is_not_repeated_in_the_refusal_of_it(namespace: Cluster) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "labels": OURS}}
    broken: list[Manifest] = [{"data": {"x": "$hunter2"}}, {"stringData": {"hunter2 x": "hunter2"}}]
    for one in broken[:1]:
        with pytest.raises(InvalidInput, match="refuses to create Secret 'a'") as caught:
            namespace.create({**secret, **one})
        assert "hunter2" not in str(caught.value)
    with pytest.raises(InvalidInput, match=r"data\[hunter2 x\]"):  # a name is no secret
        namespace.create({**secret, **broken[1]})


# ---- credentials from a program ------------------------------------------------------------------------------------


def with_program(namespace: Cluster, path: Path, program: Callable[[str], str]) -> Cluster:
    """Return the cluster by a kubeconfig that names a program for credentials, as those of clouds do."""
    limited = account(
        namespace, path, "programmed", [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]
    )
    document = yaml.safe_load((path / "programmed.yaml").read_text())
    token = document["users"][0]["user"]["token"]
    run: dict[str, Any] = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": sys.executable}
    document["users"][0]["user"] = {"exec": {**run, "args": ["-c", program(token)]}}
    (path / "programmed.yaml").write_text(yaml.safe_dump(document))
    limited.close()
    return Cluster("own", namespace.namespace, kubeconfig=str(path / "programmed.yaml"))


def test_credentials_may_come_from_a_program(namespace: Cluster, tmp_path: Path) -> None:
    def program(token: str) -> str:
        answer = {
            "apiVersion": "client.authentication.k8s.io/v1beta1",
            "kind": "ExecCredential",
            "status": {"token": token},
        }
        return f"print({json.dumps(json.dumps(answer))})"

    programmed = with_program(namespace, tmp_path, program)
    eventually(lambda: programmed.may("get", "ConfigMap"))
    assert programmed.get("ConfigMap", "none") is None
    programmed.close()


def test_a_program_that_gives_no_credentials_is_said(namespace: Cluster, tmp_path: Path) -> None:
    programmed = with_program(namespace, tmp_path, lambda _: "raise SystemExit('log in first')")
    with pytest.raises(
        Unavailable, match="program that the kubeconfig names for the context 'own' gave no credentials"
    ):
        programmed.get("ConfigMap", "none")


def test_a_pod_finds_its_own_cluster_and_namespace(
    namespace: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account(namespace, tmp_path, "inside", [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]).close()
    document = yaml.safe_load((tmp_path / "inside.yaml").read_text())
    authority = Path(document["clusters"][0]["cluster"]["certificate-authority"])
    folder = tmp_path / "serviceaccount"  # as the kubelet mounts it
    folder.mkdir()
    (folder / "ca.crt").write_bytes(authority.read_bytes())
    (folder / "namespace").write_text(namespace.namespace)
    (folder / "token").write_text(document["users"][0]["user"]["token"])
    monkeypatch.setattr("mlflow_domino.kubeconfig._IN_CLUSTER", folder)
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(folder / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(folder / "ca.crt"))
    host, port = namespace.server.removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    inside = Cluster(kubeconfig=str(tmp_path / "none"))
    assert (inside.context, inside.namespace, inside.server) == ("in-cluster", namespace.namespace, namespace.server)
    eventually(lambda: inside.may("get", "ConfigMap"))
    assert inside.get("ConfigMap", "none") is None
    inside.close()
