"""Kubernetes objects of a version, as pure functions of its records: no cluster is asked, nothing is written.

What users wrote is data in dictionaries, never part of a text; names are made of ids. The same arguments give the same
objects, and each carries a hash of itself, by which a change is told from what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_domino.config import Settings
from mlflow_domino.data_planes.assembly import working_folder
from mlflow_domino.data_planes.machine import HARNESS_PACKAGE, harness_settings
from mlflow_domino.data_planes.tier import Tier
from mlflow_domino.dialect import Manifest
from mlflow_domino.errors import InvalidInput, Unavailable
from mlflow_domino.image import ENVIRONMENT, UID
from mlflow_domino.labels import (
    CONFIGURATION,
    CONTENT,
    ENDPOINT_NAME,
    VERSION,
    labels,
    model_name,
    tokens_name,
    variables_name,
)
from mlflow_domino.models import Endpoint, Version

__all__ = [
    "MODEL_PORT",
    "PROBE_PORT",
    "SELDON_PORT",
    "Manifest",
    "Place",
    "container_security",
    "disruption_budget",
    "grace_s",
    "image_name",
    "model_manifests",
    "pod_security",
    "sealed",
    "spread",
    "to_yaml",
    "variables_manifest",
]

MODEL_PORT = 8080
#: Answers for the replica's health beside the workers, which may all be busy.
PROBE_PORT = 8081
#: Of an asynchronous version's microservice.
SELDON_PORT = 9000
_CONTAINER = "model"
_CONFIG, _TOKENS, _REPLICA = "/run/domino/config", "/run/domino/tokens", "/run/domino/replica"
_LAST_WORDS = "/dev/termination-log"
#: How long a pod that is to end still takes requests: gateways need less to hear of it and to move the route.
_MOVE_S = 5
#: What Domino's grace period has on top of the request's own time.
_SLACK_S = 5
#: Of that, what the replica gets to end with nothing to do.
_END_S = 2
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_OBJECT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][\w.:/@-]{0,511}", re.ASCII)


@dataclass(frozen=True)
class Place:
    """Where in a cluster objects go.

    Attributes
    ----------
    namespace : str
    pull_secret : str
        Name of the Secret with which images are pulled; empty: none.
    """

    namespace: str
    pull_secret: str = ""

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.namespace):
            raise InvalidInput(f"namespace {self.namespace!r}: lower-case letters, digits and '-' are wanted.")
        if self.pull_secret and not _OBJECT.fullmatch(self.pull_secret):
            raise InvalidInput(f"pull_secret {self.pull_secret!r}: the name of a Secret is wanted.")


def model_manifests(
    place: Place, endpoint: Endpoint, version: Version, image: str, tier: Tier, *, variables: Iterable[str] = ()
) -> tuple[Manifest, ...]:
    """Return the objects that run a version: ConfigMap, Service, Deployment, and a PodDisruptionBudget where there is one.

    The Secrets that the pods read, `variables_manifest` and the endpoint's tokens, must be there before they start.

    Parameters
    ----------
    place : Place
    endpoint : Endpoint
    version : Version
        Its `replicas` are those of the Deployment.
    image : str
        As the nodes pull it.
    tier : Tier
    variables : iterable of str
        Names of the endpoint's variables.

    Raises
    ------
    InvalidInput
        When a name is none that Kubernetes takes.
    """
    named = {"namespace": place.namespace, "name": model_name(version.id)}
    own = labels("model", endpoint=endpoint.id, version=version.id)
    meta = {**named, "labels": own, "annotations": {ENDPOINT_NAME: endpoint.name}}
    config = _config_map(meta, endpoint, version, tier)
    pod = _pod(place, version, image_name(image), tier, sorted(variables))
    annotations = {ENDPOINT_NAME: endpoint.name, CONFIGURATION: digest(config["data"])}
    template = {"metadata": {"labels": own, "annotations": annotations}, "spec": pod}
    objects = [config, _service(meta, version), _deployment(meta, version, template)]
    if version.replicas > 1:
        objects.append(disruption_budget(meta, {VERSION: version.id}))
    return tuple(map(sealed, objects))


def variables_manifest(place: Place, endpoint: Endpoint, version: Version, variables: Mapping[str, str]) -> Manifest:
    """Return the Secret with a version's variables, one key for each.

    Raises
    ------
    InvalidInput
        Naming the variable whose value Kubernetes cannot hand on.
    """
    for name, value in variables.items():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidInput(f"env.{name}: on Kubernetes a value must be UTF-8.") from None
    own = labels("variables", endpoint=endpoint.id, version=version.id)
    meta = {"namespace": place.namespace, "name": variables_name(version.id), "labels": own}
    return sealed(
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque", "stringData": dict(variables)}
    )


def grace_s(settings: Settings, tier: Tier) -> int:
    """Return how long a pod gets to end: the route moves, then its requests finish; on Spot machines the notice at most."""
    longest_s = settings.async_timeout_s if settings.is_async else settings.request_timeout_s
    wanted = _MOVE_S + math.ceil(longest_s) + _SLACK_S
    return min(wanted, tier.spot_notice_s) if tier.spot else wanted


def image_name(name: str) -> str:
    """Return an image's name, once it is seen to be one.

    Raises
    ------
    InvalidInput
        When it is none.
    """
    if not _IMAGE.fullmatch(name):
        raise InvalidInput(f"{name[:100]!r} is no image's name.")
    return name


def sealed(manifest: Manifest) -> Manifest:
    """Return an object with the hash of its content among its annotations."""
    meta = manifest["metadata"]
    annotations = {**meta.get("annotations", {}), CONTENT: digest(manifest)}
    return {**manifest, "metadata": {**meta, "annotations": annotations}}


def digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def to_yaml(manifests: Sequence[Manifest], served: Callable[[str], str] | None = None) -> str:
    """Return a file as `kubectl apply -f` reads it, in the API versions in which a server knows the kinds, if it tells."""
    import yaml  # only here: verbs send JSON

    with contextlib.suppress(Unavailable):
        manifests = [{**one, "apiVersion": served(one["kind"])} if served else one for one in manifests]
    return str(yaml.safe_dump_all(manifests, sort_keys=False, allow_unicode=True, explicit_start=True))


def pod_security() -> Manifest:
    """Return the security context of every pod of ours: Domino's user, never root."""
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "fsGroup": UID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security(*, read_only: bool) -> Manifest:
    """Return the security context of every container of ours."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": read_only,
    }


def spread(selected: Mapping[str, str]) -> list[Manifest]:
    """Return constraints that spread pods over zones and nodes as far as there are some."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(selected)},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def disruption_budget(meta: Manifest, selected: Mapping[str, str]) -> Manifest:
    """Return the object that lets an administrator's drain take one pod after the other."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": dict(selected)}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta, "spec": spec}


def _config_map(meta: Manifest, endpoint: Endpoint, version: Version, tier: Tier) -> Manifest:
    settings = harness_settings(endpoint, version, path=working_folder(version), tokens=_TOKENS)
    # Whoever deletes a pod, or drains its node, cuts no request off: the grace period has room for the longest.
    settings["drain_s"] = max(1, grace_s(version.settings, tier) - _moving_s(version.settings, tier) - _END_S)
    document = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"harness.json": document}}


def _service(meta: Manifest, version: Version) -> Manifest:
    # Headless: gateways reach pods by their own addresses, and every version takes no address of the cluster's.
    ports = [{"name": n, "port": p, "targetPort": n, "protocol": "TCP"} for n, p in _ports(version.settings).items()]
    spec = {"clusterIP": "None", "selector": {VERSION: version.id}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def _ports(settings: Settings) -> dict[str, int]:
    """Return the ports that requests come to, by name."""
    return {"http": MODEL_PORT, "seldon": SELDON_PORT} if settings.is_async else {"http": MODEL_PORT}


def _deployment(meta: Manifest, version: Version, template: Manifest) -> Manifest:
    settings = version.settings
    spec = {
        "replicas": version.replicas,
        "revisionHistoryLimit": 1,  # a version never changes; its objects do with our releases
        "progressDeadlineSeconds": math.ceil(settings.ready_within_s) + _SLACK_S,
        "selector": {"matchLabels": {VERSION: version.id}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": template,
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}


def _pod(place: Place, version: Version, image: str, tier: Tier, variables: Sequence[str]) -> Manifest:
    """Return the pod's specification; it must not depend on the number of replicas, or scaling would replace them."""
    settings = version.settings
    pod: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # they would be variables that nobody set
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": grace_s(settings, tier),
        "topologySpreadConstraints": spread({VERSION: version.id}),
        "containers": [_container(version, image, tier, variables)],
        "volumes": _volumes(version),
    }
    if place.pull_secret:
        pod["imagePullSecrets"] = [{"name": place.pull_secret}]
    if tier.node_selector:
        pod["nodeSelector"] = dict(tier.node_selector)
    if tier.all_tolerations:
        pod["tolerations"] = [dict(toleration) for toleration in tier.all_tolerations]
    if settings.strict_node_anti_affinity:
        apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {VERSION: version.id}}}
        pod["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    return pod


def _container(version: Version, image: str, tier: Tier, variables: Sequence[str]) -> Manifest:
    settings = version.settings
    ports = {**_ports(settings), "probe": PROBE_PORT}
    environment = {
        "DOMINO_HARNESS_CONFIG": f"{_CONFIG}/harness.json",
        "DOMINO_PORT": str(MODEL_PORT),
        "DOMINO_PROBE_PORT": str(PROBE_PORT),
        "DOMINO_REPLICA_DIR": _REPLICA,
        "DOMINO_SELDON_PORT": str(SELDON_PORT),
        "DOMINO_TERMINATION_LOG": _LAST_WORDS,
        "DOMINO_VARIABLES": ",".join(variables),
    }
    container: Manifest = {
        "name": _CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",  # an image of ours never changes under its name
        "ports": [{"name": n, "containerPort": p, "protocol": "TCP"} for n, p in ports.items()],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": _resources(tier),
        "securityContext": container_security(read_only=_read_only(version)),
        "terminationMessagePath": _LAST_WORDS,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": {"preStop": {"exec": {"command": _leave(settings, tier)}}},
        **_probes(settings, tier),
        "volumeMounts": _mounts(version),
    }
    if variables:
        container["envFrom"] = [{"secretRef": {"name": variables_name(version.id)}}]
    return container


def _probes(settings: Settings, tier: Tier) -> Manifest:
    """Return the probes: seldom whether it lives, each second whether it takes requests, so that a start costs none."""

    def probe(path: str, *, period_s: int, failures: int, delay_s: int = 0) -> Manifest:
        return {
            "httpGet": {"path": path, "port": "probe", "scheme": "HTTP"},
            "initialDelaySeconds": delay_s,
            "periodSeconds": period_s,
            "timeoutSeconds": settings.health_timeout_s,
            "successThreshold": 1,
            "failureThreshold": failures,
        }

    # The harness itself gives up first, and says why.
    starting = math.ceil(settings.start_timeout_s) + _SLACK_S
    threshold = settings.failure_threshold
    # Kubelets of old go on asking while a pod ends, when nobody answers: they must not end it before its time.
    patience = max(threshold, math.ceil(grace_s(settings, tier) / settings.health_period_s) + 1)
    return {
        "startupProbe": probe("/ready", period_s=1, failures=starting, delay_s=settings.initial_delay_s),
        "readinessProbe": probe("/ready", period_s=1, failures=threshold),
        "livenessProbe": probe("/health", period_s=settings.health_period_s, failures=patience),
    }


def _moving_s(settings: Settings, tier: Tier) -> int:
    """Return how long a pod that is to end waits for the route to move: of a short notice a third at most."""
    return min(_MOVE_S, max(1, grace_s(settings, tier) // 3))


def _leave(settings: Settings, tier: Tier) -> list[str]:
    """Return the command that a pod runs before its replica is told to end; an image need not have any other program."""
    limit_s = max(1, grace_s(settings, tier) - _END_S)
    program = f"/opt/domino/harness/{HARNESS_PACKAGE}/leaving.py"
    return [f"{ENVIRONMENT}/bin/python", "-I", program, str(_moving_s(settings, tier)), str(limit_s)]


def _resources(tier: Tier) -> Manifest:
    amounts: Manifest = {}
    if tier.cores:
        amounts["cpu"] = f"{math.ceil(tier.cores * 1000)}m"
    if tier.memory:
        amounts["memory"] = str(tier.memory)
    if tier.gpus:
        amounts[tier.gpu_key] = str(tier.gpus)
    return {"limits": amounts, "requests": dict(amounts)} if amounts else {}


def _read_only(version: Version) -> bool:
    """Whether the root file system is closed: projects may write into their folder, as on Domino; models need not."""
    wanted = version.settings.read_only_root
    return version.source.kind == "Registry" if wanted == "auto" else wanted == "true"


def _volumes(version: Version) -> list[Manifest]:
    items = [{"key": "tokens.json", "path": "tokens.json"}]
    tokens = {"secretName": tokens_name(version.endpoint_id), "items": items, "defaultMode": 0o440}
    return [
        {"name": "domino-config", "configMap": {"name": model_name(version.id)}},
        {"name": "domino-tokens", "secret": tokens},
        {"name": "domino-replica", "emptyDir": {}},
        {"name": "domino-tmp", "emptyDir": {}},
        *({"name": v.name, "hostPath": {"path": v.path, "type": "Directory"}} for v in version.settings.volumes),
    ]


def _mounts(version: Version) -> list[Manifest]:
    return [
        {"name": "domino-config", "mountPath": _CONFIG, "readOnly": True},
        {"name": "domino-tokens", "mountPath": _TOKENS, "readOnly": True},
        {"name": "domino-replica", "mountPath": _REPLICA},
        {"name": "domino-tmp", "mountPath": "/tmp"},  # noqa: S108 - in the pod
        *({"name": v.name, "mountPath": v.mount_path, "readOnly": v.read_only} for v in version.settings.volumes),
    ]
