"""Where callers find a cluster's gateway."""

from __future__ import annotations

import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any

from mlflow_domino.cluster import Cluster
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.installation import service_port
from mlflow_domino.errors import Forbidden, Unavailable
from mlflow_domino.labels import GATEWAY

__all__ = ["node_host", "unanswered", "url_of"]

_LOOK_S = 0.1


def url_of(cluster: Cluster, declaration: Declaration) -> str:
    """Return scheme, host and port that callers use.

    Raises
    ------
    Unavailable
        The gateway has no address: it is not installed, or the cluster has not given it one yet.
    """
    if declaration.url:
        return declaration.url.rstrip("/")
    scheme = "https" if declaration.tls_secret else "http"
    if declaration.expose == "ingress":
        return f"{scheme}://{declaration.ingress_host}"
    service = cluster.get("Service", GATEWAY)
    if service is None:
        raise Unavailable(
            f"The gateway of the data plane {declaration.name!r} is not installed; `mlflow-domino -t "
            f"domino:/{declaration.name} up` does it."
        )
    if declaration.expose == "nodeport":
        port = next((p.get("nodePort") for p in service["spec"].get("ports") or ()), None)
        if port:
            return f"{scheme}://{_in_url(_node(cluster))}:{port}"
    else:
        given = (service.get("status", {}).get("loadBalancer") or {}).get("ingress") or ()
        for one in given:
            port = service_port(declaration)
            usual = port == (443 if scheme == "https" else 80)
            return f"{scheme}://{_in_url(one.get('ip') or one['hostname'])}{'' if usual else f':{port}'}"
    raise Unavailable(
        f"The cluster has given the gateway no address yet (expose = {declaration.expose!r}); `kubectl describe service "
        f"{GATEWAY}` shows why. `url` under [data_planes.{declaration.name}] names one that is known otherwise."
    )


def unanswered(url: str, timeout_s: float) -> str:
    """Wait until a gateway answers at its URL; return why it does not, empty where it does.

    Its certificate is the callers' business.
    """
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=timeout_s, context=trusting):  # noqa: S310 - http(s) it is
                return ""
        except OSError as error:
            if time.monotonic() > deadline:
                return str(getattr(error, "reason", error))
        time.sleep(_LOOK_S)


def _node(cluster: Cluster) -> str:
    try:
        found = node_host(cluster.list("Node"))
    except Forbidden:  # nodes are nobody's namespace
        found = ""
    return found or urllib.parse.urlsplit(cluster.server).hostname or "localhost"


def node_host(nodes: Iterable[Mapping[str, Any]]) -> str:
    """Return the address of a node that takes requests, best one that is known outside; empty where there is none."""
    ranked = []
    for node in nodes:
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions") or ())
        for address in node["status"].get("addresses") or ():
            if address["type"] in ("ExternalIP", "InternalIP"):
                ranked.append(
                    (not ready, address["type"] != "ExternalIP", node["metadata"]["name"], address["address"])
                )
    return str(min(ranked)[3]) if ranked else ""


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
