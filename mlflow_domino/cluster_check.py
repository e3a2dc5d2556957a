"""What a Kubernetes data plane lacks: an answer, a version, rights, a registry; asked of the cluster, not assumed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from mlflow_domino.builder import builder_of
from mlflow_domino.check import Finding, Verdict
from mlflow_domino.cluster import Cluster
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.entrance import Entrance
from mlflow_domino.data_planes.rights import DEPLOY, lacking, to_install, told
from mlflow_domino.errors import DominoError, Forbidden, NotFound
from mlflow_domino.home import Home

__all__ = ["cluster_findings"]

_OLDEST = (1, 20)
_REGISTRY_S = 3.0


def cluster_findings(home: Home, declaration: Declaration) -> Iterator[Finding]:
    """Yield what is found, in the order in which it is needed; what needs an answer of the cluster's ends without one."""
    yield _builder()
    yield from _registry(home, declaration)
    cluster = Cluster(declaration.context, declaration.namespace)
    try:
        yield _version(cluster)
        yield _namespace(cluster)
        yield from _rights(cluster, home, declaration)
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


def _namespace(cluster: Cluster) -> Finding:
    """Look for the namespace by way of something that could be in it: namespaces themselves may be hidden from us."""
    probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mlflow-domino-check"}}
    try:
        cluster.create(probe, dry_run=True)
    except NotFound as error:
        return Finding("Namespace", Verdict.MISSING, error.message, f"kubectl create namespace {cluster.namespace}")
    except Forbidden:
        pass  # its own finding says so
    return Finding("Namespace", Verdict.OK, f"{cluster.namespace}, {cluster}")


def _rights(cluster: Cluster, home: Home, declaration: Declaration) -> Iterator[Finding]:
    missing = lacking(cluster, DEPLOY)
    yield Finding(
        "Rights", Verdict.MISSING if missing else Verdict.OK, f"not to {told(missing)}" if missing else "all that verbs need",
        f"have an administrator grant them in a Role of {cluster.namespace}" if missing else "",
    )  # fmt: skip
    if any(right.kind == "Deployment" and "get" in right.verbs for right in missing):
        return
    entrance = Entrance(cluster, declaration, home)
    deployed = entrance.deployed()
    if deployed:
        yield _gateway(entrance, deployed, declaration.name)
        return
    missing = lacking(cluster, to_install(declaration))
    yield Finding(
        "Gateway", Verdict.MISSING if missing else Verdict.OK,
        f"not installed, and you may not {told(missing)}" if missing else "not installed; the first create does it",
        "have an administrator run `mlflow-domino gateway install`" if missing else "",
    )  # fmt: skip


def _gateway(entrance: Entrance, deployed: str, plane: str) -> Finding:
    ready, ours = entrance.ready(), entrance.release()
    found = f"{deployed}, {ready} ready"
    if not ready:
        return Finding(
            "Gateway", Verdict.MISSING, f"{found}: nobody can call an endpoint", f"mlflow-domino -t domino:/{plane} up"
        )
    if entrance.outdated():
        return Finding(
            "Gateway",
            Verdict.WARNING,
            f"{found}; this release has {ours}",
            "the next create or update replaces it, without a lost request",
        )
    return Finding("Gateway", Verdict.OK, found)
