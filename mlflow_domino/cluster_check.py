"""What a Kubernetes data plane lacks: an answer, a version, rights, a registry; asked of the cluster, not assumed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from mlflow_domino.builder import builder_of
from mlflow_domino.check import Finding, Verdict
from mlflow_domino.cluster import Cluster
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.errors import DominoError
from mlflow_domino.home import Home

__all__ = ["cluster_findings"]

_OLDEST = (1, 20)
_REGISTRY_S = 3.0
_ALL = ("get", "list", "create", "update", "patch", "delete")
#: What a person who deploys needs in the namespace; the gateway's own rights are in its Role.
_RIGHTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("ConfigMap", "", _ALL),
    ("Secret", "", _ALL),
    ("Lease", "", ("get", "list", "create", "update", "delete")),
    ("Deployment", "", _ALL),
    ("Service", "", _ALL),
    ("PodDisruptionBudget", "", ("get", "create", "update", "delete")),
    ("Pod", "", ("get", "list", "patch", "delete")),
    ("Pod", "log", ("get",)),
    ("Pod", "proxy", ("get",)),
    ("Event", "", ("list",)),
)
#: To install the gateway, which an administrator may do once instead.
_INSTALL: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ServiceAccount", ("get", "create")),
    ("Role", ("get", "create", "update")),
    ("RoleBinding", ("get", "create")),
)


def cluster_findings(home: Home, declaration: Declaration) -> Iterator[Finding]:
    """Yield what is found, in the order in which it is needed; what needs an answer of the cluster's ends without one."""
    yield _builder()
    yield from _registry(home, declaration)
    cluster = Cluster(declaration.context, declaration.namespace)
    try:
        yield _version(cluster)
        yield Finding("Namespace", Verdict.OK, f"{cluster.namespace}, {cluster}")
        yield from _rights(cluster)
    except DominoError as error:
        yield Finding(
            "Cluster", Verdict.MISSING, error.message, "look at `kubectl config get-contexts`, and at the network"
        )
    finally:
        cluster.close()
    if not declaration.tls_secret and not declaration.url.startswith("https://"):
        yield Finding(
            "TLS", Verdict.WARNING, "the gateway speaks none: tokens travel in clear",
            f"set tls_secret under [data_planes.{declaration.name}] in {home.config}, or a url with https",
        )  # fmt: skip


def _builder() -> Finding:
    try:
        return Finding("Images", Verdict.OK, f"built by {builder_of().check()}")
    except DominoError as error:
        return Finding("Images", Verdict.MISSING, error.message, "start Docker, or install buildah")


def _registry(home: Home, declaration: Declaration) -> Iterator[Finding]:
    where = f"under [data_planes.{declaration.name}] in {home.config}"
    if not declaration.registry:
        yield Finding("Registry", Verdict.MISSING, "none is set", f"set registry {where}")
        return
    host, _, port = declaration.registry.partition("/")[0].partition(":")
    try:
        socket.create_connection((host, int(port or 443)), timeout=_REGISTRY_S).close()
        yield Finding("Registry", Verdict.OK, f"{declaration.registry} answers")
    except OSError as error:
        yield Finding(
            "Registry", Verdict.MISSING, f"{declaration.registry} does not answer: {error.strerror or error}",
            f"start it, or set another registry {where}",
        )  # fmt: skip


def _version(cluster: Cluster) -> Finding:
    found = cluster.version()
    text = f"Kubernetes {found[0]}.{found[1]}"
    if found < _OLDEST:
        return Finding("Cluster", Verdict.MISSING, f"{text} is too old", "upgrade it to 1.20 or later")
    return Finding("Cluster", Verdict.OK, text)


def _rights(cluster: Cluster) -> Iterator[Finding]:
    lacking = [
        f"{verb} {kind}{f'/{subresource}' if subresource else ''}"
        for kind, subresource, verbs in _RIGHTS
        for verb in verbs
        if not cluster.may(verb, kind, subresource)
    ]
    yield Finding(
        "Rights", Verdict.MISSING if lacking else Verdict.OK, f"not to {', '.join(lacking)}" if lacking else "all that verbs need",
        f"have an administrator grant them in a Role of {cluster.namespace}" if lacking else "",
    )  # fmt: skip
    if cluster.get("Deployment", "mlflow-domino-gateway") is not None:
        yield Finding("Gateway", Verdict.OK, "installed")
        return
    short = [f"{verb} {kind}" for kind, verbs in _INSTALL for verb in verbs if not cluster.may(verb, kind)]
    yield Finding(
        "Gateway", Verdict.MISSING if short else Verdict.OK,
        f"not installed, and you may not {', '.join(short)}" if short else "not installed; the first create does it",
        "have an administrator run `mlflow-domino gateway install`" if short else "",
    )  # fmt: skip
