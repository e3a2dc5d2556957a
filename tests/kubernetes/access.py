"""Other people's access to a cluster: kubeconfigs of ServiceAccounts with fewer rights, and of servers that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mlflow_domino.cluster import Cluster


def kubeconfig(path: Path, server: str, *, token: str = "", authority: str = "") -> str:
    """Write a kubeconfig with the one context ``own``; return its path."""
    cluster: dict[str, Any] = {"server": server}
    if authority:
        cluster["certificate-authority"] = authority
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "own",
        "contexts": [{"name": "own", "context": {"cluster": "own", "user": "own"}}],
        "clusters": [{"name": "own", "cluster": cluster}],
        "users": [{"name": "own", "user": {"token": token or "nobody's"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


def account(namespace: Cluster, folder: Path, name: str, rules: list[dict[str, list[str]]]) -> Cluster:
    """Return the namespace as a ServiceAccount sees it that has only some rights."""
    meta = {"name": name}
    namespace.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
    role = "rbac.authorization.k8s.io"
    namespace.apply({"apiVersion": f"{role}/v1", "kind": "Role", "metadata": meta, "rules": rules})
    namespace.apply(
        {
            "apiVersion": f"{role}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": role, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace.namespace}],
        }
    )
    connection = namespace._transport.connection
    path = f"/api/v1/namespaces/{namespace.namespace}/serviceaccounts/{name}/token"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = namespace._transport.json(namespace._call("create"), "POST", path, body=asked)
    authority = connection.client.configuration.ssl_ca_cert
    file = kubeconfig(folder / f"{name}.yaml", connection.server, token=answer["status"]["token"], authority=authority)
    return Cluster("", namespace.namespace, kubeconfig=file)
