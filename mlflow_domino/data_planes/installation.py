"""Kubernetes objects of the gateway, as pure functions of a data plane's declaration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.manifests import (
    Place,
    container_security,
    disruption_budget,
    image_name,
    pod_security,
    sealed,
    spread,
    to_yaml,
)
from mlflow_domino.dialect import Manifest
from mlflow_domino.errors import InvalidInput
from mlflow_domino.gateway.surroundings import PORT, WATCHER_PORT
from mlflow_domino.image import dockerfile
from mlflow_domino.labels import CONFIGURATION, GATEWAY, GATEWAY_TOKENS, RELEASE, labels

__all__ = ["LONGEST_S", "gateway_files", "gateway_manifests", "gateway_secret", "service_port"]

#: How long a gateway's pod may take for its last requests: as long as any setting lets a request take.
LONGEST_S = 86400.0
_SLACK_S = 30
_MANAGEMENT, _CERTIFICATE = "/etc/domino/gateway", "/etc/domino/tls"
_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def gateway_manifests(
    place: Place, declaration: Declaration, image: str, *, release: str, configuration: str = "",
    longest_s: float = LONGEST_S,
) -> tuple[Manifest, ...]:  # fmt: skip
    """Return the objects that run the gateway, in the order in which to make them.

    The Secret of `gateway_secret` must be there before; it holds what nobody should read in a file.

    Parameters
    ----------
    place : Place
    declaration : Declaration
        How the gateway is exposed, with how many pods.
    image : str
        As the nodes pull it.
    release : str
        What the image was made from; another one replaces the pods, one after the other.
    configuration : str
        Something that changes with what the pods read when they start; another one replaces them likewise.
    longest_s : float
        The longest time limit of a request of any endpoint.

    Raises
    ------
    InvalidInput
        When a name is none that Kubernetes takes.
    """
    objects = [*_account(place), _service(place, declaration)]
    if declaration.expose == "ingress":
        objects.append(_ingress(place, declaration, longest_s))
    if declaration.gateway_replicas > 1:
        objects.append(disruption_budget(_meta(place), labels("gateway")))
    marks = {RELEASE: release, **({CONFIGURATION: configuration} if configuration else {})}
    return tuple(map(sealed, (*objects, _deployment(place, declaration, image_name(image), marks, longest_s))))


def gateway_files(
    place: Place, declaration: Declaration, image: str, *, release: str, served: Callable[[str], str] | None = None
) -> dict[str, str]:
    """Return, by name, the files with which an administrator installs the gateway; as `gateway_manifests`.

    Parameters
    ----------
    image : str
        Empty for one that is still to be made.
    served : callable or None
        As for `to_yaml`.
    """
    before = (
        "# Needs a Secret with what must be in no file: a token for /metrics, and the database of predictions if any:\n"
        f"#   kubectl create secret generic {GATEWAY} --from-literal=management-token=…"
        f"{' --from-literal=queue=postgresql://…' if declaration.queue else ''}\n"
    )
    if not image:
        image = f"{declaration.registry or 'your-registry'}/mlflow-domino-gateway:HASH-OF-THE-CONTENT"
        before += (
            f"# Nobody has made or pushed its image yet: `mlflow-domino -t domino:/{declaration.name} gateway image` does, "
            "and\n# writes the name that belongs in place of HASH-OF-THE-CONTENT, or to `gateway render --image`.\n"
        )
    files = {f"dockerfiles/{name}/Dockerfile": dockerfile(name) for name in ("packages", "gateway")}
    objects = gateway_manifests(place, declaration, image, release=release)
    return {"gateway.yaml": before + to_yaml(objects, served), **files}


def gateway_secret(place: Place, values: Mapping[str, str]) -> Manifest:
    """Return the Secret that the gateway's pods read as files: ``management-token``, and the queue where there is one."""
    document = {"apiVersion": "v1", "kind": "Secret", "metadata": _meta(place), "type": "Opaque"}
    return sealed({**document, "stringData": dict(values)})


def service_port(declaration: Declaration) -> int:
    """Return the port of the gateway's Service."""
    return 443 if declaration.port == 80 and _speaks_tls(declaration) else declaration.port


def _speaks_tls(declaration: Declaration) -> bool:
    """Whether the gateway itself does; an Ingress does it before the gateway."""
    return bool(declaration.tls_secret) and declaration.expose != "ingress"


def _meta(place: Place) -> Manifest:
    return {"namespace": place.namespace, "name": GATEWAY, "labels": labels("gateway")}


def _account(place: Place) -> list[Manifest]:
    """Return who the gateway is to the API server, and the little that it may: read records and addresses, show a Lease."""
    group = "rbac.authorization.k8s.io"
    rules = [
        _rule("", "configmaps", "get", "list", "watch"),
        _rule("discovery.k8s.io", "endpointslices", "get", "list", "watch"),
        _rule("coordination.k8s.io", "leases", "get", "list", "create", "update", "patch"),
        {**_rule("", "secrets", "get"), "resourceNames": [GATEWAY_TOKENS]},
    ]
    role_ref = {"apiGroup": group, "kind": "Role", "name": GATEWAY}
    subjects = [{"kind": "ServiceAccount", "name": GATEWAY, "namespace": place.namespace}]
    meta, version = _meta(place), f"{group}/v1"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta, "automountServiceAccountToken": False},
        {"apiVersion": version, "kind": "Role", "metadata": meta, "rules": rules},
        {"apiVersion": version, "kind": "RoleBinding", "metadata": meta, "roleRef": role_ref, "subjects": subjects},
    ]


def _rule(group: str, resource: str, *verbs: str) -> Manifest:
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}


def _service(place: Place, declaration: Declaration) -> Manifest:
    kind = {"nodeport": "NodePort", "loadbalancer": "LoadBalancer", "ingress": "ClusterIP"}[declaration.expose]
    port: Manifest = {"name": "http", "port": service_port(declaration), "targetPort": "http", "protocol": "TCP"}
    if declaration.node_port and kind != "ClusterIP":
        port["nodePort"] = declaration.node_port
    spec = {"type": kind, "selector": labels("gateway"), "ports": [port]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(place), "spec": spec}


def _ingress(place: Place, declaration: Declaration, longest_s: float) -> Manifest:
    host = declaration.ingress_host
    if host and not _HOST.fullmatch(host):
        raise InvalidInput(f"ingress_host {host!r}: the name of a host is wanted.")
    backend = {"service": {"name": GATEWAY, "port": {"name": "http"}}}
    rule: Manifest = {"http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    spec: Manifest = {"rules": [{**({"host": host} if host else {}), **rule}]}
    if declaration.ingress_class:
        spec["ingressClassName"] = declaration.ingress_class
    if declaration.tls_secret:
        spec["tls"] = [{**({"hosts": [host]} if host else {}), "secretName": declaration.tls_secret}]
    # The most usual controller ends bodies of 1 MB and requests of 60 s by itself; limits are the gateway's business.
    nginx = {"proxy-body-size": "0", **dict.fromkeys(("proxy-read-timeout", "proxy-send-timeout"), _seconds(longest_s))}
    annotations = {f"nginx.ingress.kubernetes.io/{key}": value for key, value in nginx.items()}
    meta = {**_meta(place), "annotations": annotations}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta, "spec": spec}


def _seconds(longest_s: float) -> str:
    return str(math.ceil(longest_s) + _SLACK_S)


def _deployment(
    place: Place, declaration: Declaration, image: str, marks: Mapping[str, str], longest_s: float
) -> Manifest:
    pod: Manifest = {
        "serviceAccountName": GATEWAY,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        # Its program ends by itself when nothing is in flight any more, mostly within seconds.
        "terminationGracePeriodSeconds": math.ceil(longest_s) + _SLACK_S,
        "topologySpreadConstraints": spread(labels("gateway")),
        "containers": [_container(declaration, image, marks[RELEASE])],
        "volumes": _volumes(declaration),
    }
    if place.pull_secret:
        pod["imagePullSecrets"] = [{"name": place.pull_secret}]
    template = {"metadata": {"labels": labels("gateway"), "annotations": dict(marks)}, "spec": pod}
    spec = {
        "replicas": declaration.gateway_replicas,
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": 300,
        "selector": {"matchLabels": labels("gateway")},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": template,
    }
    meta = {**_meta(place), "annotations": {RELEASE: marks[RELEASE]}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}


def _container(declaration: Declaration, image: str, release: str) -> Manifest:
    fields = {"DOMINO_NAMESPACE": "namespace", "DOMINO_POD": "name", "DOMINO_POD_UID": "uid"}
    environment: list[Manifest] = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.{field}"}}} for name, field in fields.items()
    ]
    told = {
        "DOMINO_RELEASE": release,
        "DOMINO_GATEWAYS": str(declaration.gateway_replicas),
        "DOMINO_ASYNC_MAX_REQUEST": str(declaration.async_max_request),
        "DOMINO_ASYNC_MAX_RESULT": str(declaration.async_max_result),
        "DOMINO_WEBHOOK_PRIVATE": "true" if declaration.webhook_private else "false",
        **({"DOMINO_TLS": _CERTIFICATE} if _speaks_tls(declaration) else {}),
    }
    environment += [{"name": name, "value": value} for name, value in told.items()]
    ports = {"http": PORT, "watcher": WATCHER_PORT}
    return {
        "name": "gateway",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()],
        "env": environment,
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": container_security(read_only=True),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # There is no other probe: its program keeps its parts alive, and to start it again would cut requests off.
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": "watcher", "scheme": "HTTP"},
            "periodSeconds": 1,
            "timeoutSeconds": 3,
            "failureThreshold": 5,
        },
        "volumeMounts": _mounts(declaration),
    }


def _volumes(declaration: Declaration) -> list[Manifest]:
    secrets = {"management": GATEWAY, **({"tls": declaration.tls_secret} if _speaks_tls(declaration) else {})}
    return [
        {"name": "run", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        *({"name": n, "secret": {"secretName": s, "defaultMode": 0o440}} for n, s in secrets.items()),
    ]


def _mounts(declaration: Declaration) -> list[Manifest]:
    secrets = {"management": _MANAGEMENT, **({"tls": _CERTIFICATE} if _speaks_tls(declaration) else {})}
    return [
        {"name": "run", "mountPath": "/run/domino"},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - in the pod
        *({"name": name, "mountPath": path, "readOnly": True} for name, path in secrets.items()),
    ]
