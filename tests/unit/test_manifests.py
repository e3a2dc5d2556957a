from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client

from mlflow_domino.config import Secrets
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.installation import gateway_files, gateway_secret
from mlflow_domino.data_planes.manifests import Place, grace_s, model_manifests, to_yaml, variables_manifest
from mlflow_domino.data_planes.tier import Tier
from mlflow_domino.dialect import Manifest
from mlflow_domino.errors import InvalidInput, Unavailable
from mlflow_domino.labels import CONFIGURATION, CONTENT, ENDPOINT_NAME, KIND
from tests.published import DECLARATIONS, ENDPOINT, IMAGE, SETTINGS, TIERS, gateway_objects, objects, published

PLACE = Place("models")


def pod_of(found: dict[str, Manifest]) -> Manifest:
    pod: Manifest = found["Deployment"]["spec"]["template"]["spec"]
    return pod


def container_of(found: dict[str, Manifest]) -> Manifest:
    container: Manifest = pod_of(found)["containers"][0]
    return container


def everything() -> Iterator[Any]:
    for name, config in SETTINGS.items():
        for registry in (False, True):
            found = objects(published(registry=registry, **config), variables=["A", "B"])
            yield pytest.param(found, id=f"{name}-{registry}")
    for name, tier in TIERS.items():
        yield pytest.param(objects(published(), tier, place=Place("models", "pull")), id=f"tier {name}")
    for name, declared in DECLARATIONS.items():
        yield pytest.param(gateway_objects(**declared), id=f"gateway {name}")
    secrets = (
        variables_manifest(PLACE, ENDPOINT, published(), {"A": "b"}),
        gateway_secret(PLACE, {"management-token": "t"}),
    )
    yield pytest.param(dict(enumerate(secrets)), id="secrets")


@pytest.mark.parametrize("found", everything())
def test_every_field_is_one_that_current_servers_know(found: dict[str, Manifest]) -> None:
    api = client.ApiClient()
    for one in found.values():
        group = one["apiVersion"].rpartition("/")[2].capitalize()
        read = api._ApiClient__deserialize(one, f"{group}{one['kind']}")  # type: ignore[attr-defined]
        assert api.sanitize_for_serialization(read) == without_empty(one)


def without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_empty(v) for k, v in value.items() if v is not None}
    return [without_empty(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("found", everything())
def test_files_of_objects_read_back_as_the_same(found: dict[str, Manifest]) -> None:
    assert list(yaml.safe_load_all(to_yaml(tuple(found.values())))) == json.loads(json.dumps(list(found.values())))


@pytest.mark.parametrize("found", everything())
def test_every_object_is_ours_to_see_and_says_what_it_holds(found: dict[str, Manifest]) -> None:
    for one in found.values():
        assert one["metadata"]["namespace"] == "models"
        assert one["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "mlflow-domino"
        assert one["metadata"]["labels"][KIND]
        assert len(one["metadata"]["annotations"][CONTENT]) == 32
        for label in one["metadata"]["labels"].values():
            assert len(label) < 64


def test_the_same_records_give_the_same_objects_and_a_change_is_seen() -> None:
    def hashes(**config: Any) -> dict[str, str]:
        return {kind: one["metadata"]["annotations"][CONTENT] for kind, one in objects(published(**config)).items()}

    assert hashes(threads=2) == hashes(threads=2)
    assert hashes(threads=2)["ConfigMap"] != hashes(threads=3)["ConfigMap"]
    assert hashes(threads=2)["Deployment"] != hashes(threads=3)["Deployment"]
    assert hashes(threads=2)["Service"] == hashes(threads=3)["Service"]


def test_scaling_changes_no_pod() -> None:
    version = published(replicas=2)
    one, two = objects(dataclasses.replace(version, replicas=1)), objects(version)
    assert one["Deployment"]["spec"]["template"] == two["Deployment"]["spec"]["template"]
    assert (one["Deployment"]["spec"]["replicas"], two["Deployment"]["spec"]["replicas"]) == (1, 2)
    assert "PodDisruptionBudget" not in one
    assert two["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_an_update_takes_no_replica_away_before_another_is_ready() -> None:
    assert objects(published())["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {
        "maxUnavailable": 0,
        "maxSurge": 1,
    }
    assert gateway_objects()["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("found", everything())
def test_no_pod_has_privileges(found: dict[str, Manifest]) -> None:
    if "Deployment" not in found:
        return
    pod, container = pod_of(found), container_of(found)
    assert pod["securityContext"]["runAsNonRoot"]
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (12574, 12574)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert not container["securityContext"]["privileged"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert pod["automountServiceAccountToken"] == ("serviceAccountName" in pod)


def test_a_models_root_is_read_only_and_a_projects_is_not_unless_it_is_asked_for() -> None:
    def closed(**config: Any) -> bool:
        return bool(container_of(objects(published(**config)))["securityContext"]["readOnlyRootFilesystem"])

    assert closed(registry=True)
    assert not closed(registry=True, read_only_root="false")
    assert not closed()
    assert closed(read_only_root=True)


def test_only_the_endpoints_own_variables_are_set_and_nowhere_in_clear() -> None:
    version = published()
    secrets = Secrets(variables={"B": "hunter2-hunter2", "A": "x\n$(B)"})
    found = objects(version, variables=secrets.variables)
    container = container_of(found)
    assert {e["name"] for e in container["env"]} == {
        "DOMINO_HARNESS_CONFIG", "DOMINO_PORT", "DOMINO_PROBE_PORT", "DOMINO_REPLICA_DIR", "DOMINO_SELDON_PORT",
        "DOMINO_TERMINATION_LOG", "DOMINO_VARIABLES",
    }  # fmt: skip
    assert {"name": "DOMINO_VARIABLES", "value": "A,B"} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": f"version-{version.id}-variables"}}]
    assert not pod_of(found)["enableServiceLinks"]
    assert "hunter2" not in json.dumps(list(found.values()))
    secret = variables_manifest(PLACE, ENDPOINT, version, secrets.variables)
    assert secret["stringData"] == secrets.variables
    assert "envFrom" not in container_of(objects(version))


def test_a_variable_that_kubernetes_cannot_hand_on_is_named_without_its_value() -> None:
    with pytest.raises(InvalidInput, match=r"env\.A: .* UTF-8") as caught:
        variables_manifest(PLACE, ENDPOINT, published(), {"A": "secret\udcff"})
    assert "secret" not in str(caught.value)


def test_the_harness_reads_its_settings_and_tokens_from_folders_that_are_mounted() -> None:
    found = objects(published(threads=3))
    settings = json.loads(found["ConfigMap"]["data"]["harness.json"])
    container, mounts = container_of(found), {m["mountPath"]: m for m in container_of(found)["volumeMounts"]}
    assert {"name": "DOMINO_HARNESS_CONFIG", "value": "/run/domino/config/harness.json"} in container["env"]
    assert settings["threads"] == 3
    assert settings["endpoint_name"] == ENDPOINT.name
    assert settings["tokens"] == "/run/domino/tokens"
    assert mounts["/run/domino/config"]["readOnly"]
    assert mounts["/run/domino/tokens"]["readOnly"]
    assert not any("subPath" in mount for mount in mounts.values())
    tokens = next(v for v in pod_of(found)["volumes"] if v["name"] == "domino-tokens")["secret"]
    assert tokens["secretName"] == f"endpoint-{ENDPOINT.id}-tokens"
    assert [item["key"] for item in tokens["items"]] == ["tokens.json"]  # names of tokens are nobody's business there
    template = found["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert template[CONFIGURATION] != objects(published(threads=4))["Deployment"]["spec"]["template"]["metadata"]["annotations"][CONFIGURATION]  # fmt: skip


def test_names_that_are_no_labels_are_annotations() -> None:
    for one in objects(published()).values():
        assert one["metadata"]["annotations"][ENDPOINT_NAME] == ENDPOINT.name


def test_a_pod_that_ends_first_loses_its_route_then_finishes_its_requests() -> None:
    found = objects(published(request_timeout_s=59.5))
    pod = pod_of(found)
    command = container_of(found)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "/opt/domino/environment/bin/python"
    assert command[-2:] == ["5", "68"]  # the route moves; then the queue runs dry
    assert pod["terminationGracePeriodSeconds"] == 5 + 60 + 5
    assert json.loads(found["ConfigMap"]["data"]["harness.json"])["drain_s"] == 63
    assert pod_of(objects(published(is_async=True)))["terminationGracePeriodSeconds"] == 5 + 1800 + 5


@pytest.mark.parametrize(("notice_s", "sleep_s", "drain_s"), [(25, 5, 18), (5, 1, 2)])
def test_on_spot_machines_a_pod_ends_within_the_notice(notice_s: int, sleep_s: int, drain_s: int) -> None:
    found = objects(published(), Tier(spot=True, spot_notice_s=notice_s))
    assert pod_of(found)["terminationGracePeriodSeconds"] == notice_s
    command = container_of(found)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[-2:] == [str(sleep_s), str(notice_s - 2)]
    assert json.loads(found["ConfigMap"]["data"]["harness.json"])["drain_s"] == drain_s
    assert grace_s(published(request_timeout_s=1).settings, Tier(spot=True)) == 11


def test_probes_ask_the_port_that_is_never_busy_as_the_health_settings_say() -> None:
    container = container_of(objects(published(**SETTINGS["health"], start_timeout_s=30, request_timeout_s=1)))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8080, "probe": 8081}
    startup, ready, live = (container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    assert {probe["httpGet"]["port"] for probe in (startup, ready, live)} == {"probe"}
    assert (startup["httpGet"]["path"], ready["httpGet"]["path"], live["httpGet"]["path"]) == (
        "/ready",
        "/ready",
        "/health",
    )
    assert (startup["initialDelaySeconds"], startup["periodSeconds"]) == (20, 1)
    assert startup["failureThreshold"] > 30  # the harness gives up first, and says why
    assert (live["periodSeconds"], live["timeoutSeconds"], live["failureThreshold"]) == (3, 2, 9)
    assert (ready["periodSeconds"], ready["timeoutSeconds"], ready["failureThreshold"]) == (1, 2, 9)


@pytest.mark.parametrize("timeout_s", [1, 60, 3600])
def test_no_pod_is_taken_for_dead_while_it_ends(timeout_s: int) -> None:
    found = objects(published(request_timeout_s=timeout_s))
    live = container_of(found)["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] > pod_of(found)["terminationGracePeriodSeconds"]


def test_a_tier_chooses_resources_and_nodes() -> None:
    pod = pod_of(objects(published(), TIERS["gpu"]))
    amounts = {"cpu": "3500m", "memory": str(16 << 30), "amd.com/gpu": "2"}
    assert pod["containers"][0]["resources"] == {"limits": amounts, "requests": amounts}
    assert pod["nodeSelector"] == {"pool": "gpu"}
    keys = [toleration["key"] for toleration in pod_of(objects(published(), TIERS["spot"]))["tolerations"]]
    assert keys[0] == "x"
    assert "cloud.google.com/gke-spot" in keys
    assert pod_of(objects(published()))["containers"][0]["resources"] == {}


def test_replicas_are_spread_and_kept_apart_where_that_is_asked() -> None:
    pod = pod_of(objects(published()))
    assert [c["topologyKey"] for c in pod["topologySpreadConstraints"]] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]
    assert {c["whenUnsatisfiable"] for c in pod["topologySpreadConstraints"]} == {"ScheduleAnyway"}
    assert "affinity" not in pod
    strict = pod_of(objects(published(strict_node_anti_affinity=True)))["affinity"]["podAntiAffinity"]
    assert strict["requiredDuringSchedulingIgnoredDuringExecution"][0]["topologyKey"] == "kubernetes.io/hostname"


def test_volumes_are_folders_of_the_node() -> None:
    pod = pod_of(objects(published(**SETTINGS["volumes"])))
    assert pod["volumes"][-2:] == [
        {"name": "data", "hostPath": {"path": "/srv/data", "type": "Directory"}},
        {"name": "out", "hostPath": {"path": "/srv/ö", "type": "Directory"}},
    ]
    assert [m["readOnly"] for m in pod["containers"][0]["volumeMounts"][-2:]] == [True, False]


def test_an_asynchronous_version_has_a_port_for_its_microservice() -> None:
    found = objects(published(is_async=True))
    assert [port["name"] for port in found["Service"]["spec"]["ports"]] == ["http", "seldon"]
    assert {"name": "seldon", "containerPort": 9000, "protocol": "TCP"} in container_of(found)["ports"]
    assert [port["name"] for port in objects(published())["Service"]["spec"]["ports"]] == ["http"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Place("Models"), "namespace 'Models'"),
        (lambda: Place("models", "a b"), "pull_secret 'a b'"),
        (lambda: objects(published(), image="-rf image"), "no image's name"),
        (lambda: objects(dataclasses.replace(published(), id="../x")), "is no id"),
        (lambda: gateway_objects(expose="ingress", ingress_host="a/b"), "ingress_host 'a/b'"),
    ],
)
def test_what_is_no_name_never_becomes_one(make: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make()


def test_the_gateway_may_do_what_it_must_and_nothing_else() -> None:
    rules = {rule["resources"][0]: rule for rule in gateway_objects()["Role"]["rules"]}
    assert set(rules) == {"configmaps", "endpointslices", "leases", "secrets"}
    assert rules["secrets"]["verbs"] == ["get"]
    assert rules["secrets"]["resourceNames"] == ["mlflow-domino-gateway-tokens"]
    assert set(rules["configmaps"]["verbs"]) == {"get", "list", "watch"}
    assert not {"delete", "deletecollection", "*"} & {verb for rule in rules.values() for verb in rule["verbs"]}


def test_the_gateway_is_exposed_as_declared() -> None:
    def service(**declared: Any) -> tuple[str, int, int | None]:
        spec = gateway_objects(**declared)["Service"]["spec"]
        return spec["type"], spec["ports"][0]["port"], spec["ports"][0].get("nodePort")

    assert service() == ("NodePort", 80, None)
    assert service(node_port=30123, tls_secret="tls") == ("NodePort", 443, 30123)
    assert service(expose="loadbalancer", port=8443) == ("LoadBalancer", 8443, None)
    assert service(expose="ingress", tls_secret="tls", node_port=30123) == ("ClusterIP", 80, None)


def test_an_ingress_speaks_tls_for_the_gateway() -> None:
    found = gateway_objects(**DECLARATIONS["ingress"])
    spec = found["Ingress"]["spec"]
    assert spec["ingressClassName"] == "nginx"
    assert spec["tls"] == [{"hosts": ["models.example.com"], "secretName": "tls"}]
    assert spec["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] == "mlflow-domino-gateway"
    assert "DOMINO_TLS" not in {e["name"] for e in container_of(found)["env"]}
    direct = gateway_objects(tls_secret="tls")
    assert {"name": "DOMINO_TLS", "value": "/etc/domino/tls"} in container_of(direct)["env"]
    assert "Ingress" not in direct


def test_another_release_replaces_the_gateways_pods() -> None:
    before, after = (gateway_objects(release=release)["Deployment"]["spec"]["template"] for release in ("1", "2"))
    assert before != after
    assert "PodDisruptionBudget" in gateway_objects(gateway_replicas=2)
    assert "PodDisruptionBudget" not in gateway_objects()


def test_the_order_of_objects_is_the_one_to_make_them_in() -> None:
    made = model_manifests(PLACE, ENDPOINT, published(replicas=2), IMAGE, Tier())
    assert [one["kind"] for one in made] == ["ConfigMap", "Service", "Deployment", "PodDisruptionBudget"]
    assert list(gateway_objects())[-1] == "Deployment"


def test_files_are_in_the_versions_that_a_server_knows_and_in_the_stable_ones_where_none_tells() -> None:
    found = tuple(objects(published(replicas=2)).values())
    older = {"PodDisruptionBudget": "policy/v1beta1"}
    read = list(yaml.safe_load_all(to_yaml(found, lambda kind: older.get(kind, "v1"))))
    assert [one["apiVersion"] for one in read] == ["v1", "v1", "v1", "policy/v1beta1"]

    def silent(_kind: str) -> str:
        raise Unavailable("nobody answers")

    assert to_yaml(found, silent) == to_yaml(found)


def test_a_gateway_whose_image_nobody_has_made_says_how() -> None:
    declaration = Declaration("prod", kind="kubernetes", registry="registry.example.com/models")
    text = gateway_files(PLACE, declaration, "", release="1.0")["gateway.yaml"]
    assert "# Nobody has made or pushed its image yet: `mlflow-domino -t domino:/prod gateway image` does" in text
    assert "image: registry.example.com/models/mlflow-domino-gateway:HASH-OF-THE-CONTENT" in text
    assert "HASH-OF-THE-CONTENT" not in gateway_files(PLACE, declaration, IMAGE, release="1.0")["gateway.yaml"]
