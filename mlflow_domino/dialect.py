"""The kinds of Kubernetes objects that we use, and in which API versions a server may know them.

Everything outside of this module speaks the stable version (the first one of each kind). `fitted` turns a manifest into
what an older server reads, `stable` turns its answers back.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_domino.errors import Unsupported

__all__ = ["Kind", "Manifest", "fitted", "kind_of", "replacement", "stable"]

Manifest = dict[str, Any]

_HOSTNAME, _ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"


@dataclass(frozen=True)
class Kind:
    """A kind of objects.

    Attributes
    ----------
    name, plural : str
        As in a manifest and in a URL.
    versions : tuple of str
        API versions whose fields are the same but for what `fitted` does, the preferred one first.
    namespaced : bool
    """

    name: str
    plural: str
    versions: tuple[str, ...]
    namespaced: bool = True

    @property
    def group(self) -> str:
        """Name of the API group, as rights name it; empty for the core."""
        return self.versions[0].rpartition("/")[0]


_KINDS = {
    kind.name: kind
    for kind in (
        Kind("ConfigMap", "configmaps", ("v1",)),
        Kind("Secret", "secrets", ("v1",)),
        Kind("Service", "services", ("v1",)),
        Kind("ServiceAccount", "serviceaccounts", ("v1",)),
        Kind("Pod", "pods", ("v1",)),
        Kind("Event", "events", ("v1",)),
        Kind("PersistentVolumeClaim", "persistentvolumeclaims", ("v1",)),
        Kind("ResourceQuota", "resourcequotas", ("v1",)),
        Kind("LimitRange", "limitranges", ("v1",)),
        Kind("Node", "nodes", ("v1",), namespaced=False),
        Kind("Namespace", "namespaces", ("v1",), namespaced=False),
        Kind("Deployment", "deployments", ("apps/v1",)),
        Kind("ReplicaSet", "replicasets", ("apps/v1",)),
        Kind("StatefulSet", "statefulsets", ("apps/v1",)),
        Kind("DaemonSet", "daemonsets", ("apps/v1",)),
        Kind("Job", "jobs", ("batch/v1",)),
        Kind("CronJob", "cronjobs", ("batch/v1", "batch/v1beta1")),
        Kind("PodDisruptionBudget", "poddisruptionbudgets", ("policy/v1", "policy/v1beta1")),
        Kind("Ingress", "ingresses", ("networking.k8s.io/v1",)),
        Kind("IngressClass", "ingressclasses", ("networking.k8s.io/v1",), namespaced=False),
        Kind("NetworkPolicy", "networkpolicies", ("networking.k8s.io/v1",)),
        Kind("EndpointSlice", "endpointslices", ("discovery.k8s.io/v1", "discovery.k8s.io/v1beta1")),
        Kind("HorizontalPodAutoscaler", "horizontalpodautoscalers", ("autoscaling/v2", "autoscaling/v2beta2")),
        Kind("Lease", "leases", ("coordination.k8s.io/v1",)),
        Kind("Role", "roles", ("rbac.authorization.k8s.io/v1",)),
        Kind("RoleBinding", "rolebindings", ("rbac.authorization.k8s.io/v1",)),
    )
}


def kind_of(name: str) -> Kind:
    """Return a kind by its name.

    Raises
    ------
    Unsupported
        It is none that we use.
    """
    if name not in _KINDS:
        raise Unsupported(f"{name!r} is no kind of Kubernetes objects that mlflow-domino works with.")
    return _KINDS[name]


def fitted(manifest: Mapping[str, Any], version: str) -> Manifest:
    """Return a manifest of the stable version as a server reads it that serves the kind in another one."""
    written = {**manifest, "apiVersion": version}
    if "stringData" in written:  # write-only, and merged with what is there: an old key would stay
        plain = {k: base64.b64encode(v.encode()).decode() for k, v in (written.pop("stringData") or {}).items()}
        written["data"] = {**(written.get("data") or {}), **plain}
    if version == "discovery.k8s.io/v1beta1":
        written["endpoints"] = [_older_endpoint(e) for e in written.get("endpoints") or ()]
    return written


def stable(manifest: Manifest) -> Manifest:
    """Return an answer of an older server as one of the stable version."""
    kind = _KINDS.get(manifest.get("kind", ""))
    if kind is None or manifest.get("apiVersion") not in kind.versions[1:]:
        return manifest
    read = {**manifest, "apiVersion": kind.versions[0]}
    if manifest["apiVersion"] == "discovery.k8s.io/v1beta1":
        read["endpoints"] = [_newer_endpoint(e) for e in read.get("endpoints") or ()]
    return read


def _newer_endpoint(endpoint: Manifest) -> Manifest:
    """`topology` became `nodeName` and `zone`; addresses, conditions and targets are the same."""
    topology = dict(endpoint.get("topology") or {})
    read = {k: v for k, v in endpoint.items() if k != "topology"}
    for field, key in (("nodeName", _HOSTNAME), ("zone", _ZONE)):
        if key in topology:
            read.setdefault(field, topology.pop(key))
    return {**read, "deprecatedTopology": topology} if topology else read


def _older_endpoint(endpoint: Manifest) -> Manifest:
    written = {k: v for k, v in endpoint.items() if k not in ("nodeName", "zone", "deprecatedTopology")}
    topology = dict(endpoint.get("deprecatedTopology") or {})
    for field, key in (("nodeName", _HOSTNAME), ("zone", _ZONE)):
        if field in endpoint:
            topology[key] = endpoint[field]
    return {**written, "topology": topology} if topology else written


#: Fields of a Service's spec that the server allocates once.
_ALLOCATED = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")


def replacement(found: Manifest, wanted: Mapping[str, Any]) -> Manifest:
    """Return the object that makes an existing one as a manifest wants it, and leaves others' parts of it alone.

    Others' parts are status, what the server allocated, labels and annotations outside of ``mlflow-domino/``, and the
    number of replicas where the manifest does not say it.
    """
    made = {**found, **wanted, "metadata": _metadata(found["metadata"], wanted["metadata"])}
    if found["kind"] in ("ConfigMap", "Secret"):
        for key in {"data", "binaryData"} - set(wanted):
            made.pop(key, None)
    before, spec = found.get("spec"), wanted.get("spec")
    if not before or not spec:
        return made
    made["spec"] = spec = dict(spec)
    if found["kind"] == "Service":
        _keep_allocated(before, spec)
    if "replicas" in before:
        spec.setdefault("replicas", before["replicas"])
    if "template" in before and "template" in spec:
        template = spec["template"]
        # `kubectl rollout restart` writes an annotation there; without it the pods would be replaced once more.
        metadata = _metadata(before["template"].get("metadata") or {}, template.get("metadata") or {}, labels=False)
        spec["template"] = {**template, "metadata": metadata}
    return made


def _metadata(found: Mapping[str, Any], wanted: Mapping[str, Any], *, labels: bool = True) -> Manifest:
    made = {**found, **wanted}
    for key in ("labels", "annotations") if labels else ("annotations",):
        foreign = {k: v for k, v in (found.get(key) or {}).items() if not k.startswith("mlflow-domino/")}
        merged = {**foreign, **(wanted.get(key) or {})}
        made.pop(key, None)
        if merged:
            made[key] = merged
    return made


def _keep_allocated(before: Mapping[str, Any], spec: Manifest) -> None:
    for key in _ALLOCATED:
        if key in before:
            spec.setdefault(key, before[key])
    if spec.get("type", "ClusterIP") == before.get("type") and "healthCheckNodePort" in before:
        spec.setdefault("healthCheckNodePort", before["healthCheckNodePort"])
    if spec.get("type") in ("NodePort", "LoadBalancer"):
        ports = {port["port"]: port["nodePort"] for port in before.get("ports", ()) if port.get("nodePort")}
        spec["ports"] = [
            {"nodePort": ports[port["port"]], **port} if port["port"] in ports else port
            for port in spec.get("ports", ())
        ]
