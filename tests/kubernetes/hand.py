"""What a person does by hand in a namespace: kubectl, and a look at which pods serve."""

from __future__ import annotations

import subprocess

from mlflow_domino.cluster import Cluster
from mlflow_domino.labels import labels

__all__ = ["kubectl", "running"]


def kubectl(cluster: Cluster, *words: str) -> str:
    argv = ["kubectl", "--context", cluster.context, "-n", cluster.namespace, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def running(cluster: Cluster, kind: str) -> list[str]:
    """Return the names of the pods of a kind that take requests, in their order."""
    return sorted(
        pod["metadata"]["name"]
        for pod in cluster.list("Pod", labels(kind))
        if "deletionTimestamp" not in pod["metadata"]
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or ())
    )
