"""A gateway of two pods in a namespace, and calls to it."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import Any

from mlflow_domino.cluster import Cluster
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.entrance import Entrance
from mlflow_domino.home import Home
from mlflow_domino.labels import labels
from tests.kubernetes.stage import E, Stage
from tests.load import Load

PATH = f"/models/{E}/latest/model"


class Site:
    """A gateway of two pods in a namespace, with what it takes to make another of it."""

    def __init__(self, cluster: Cluster, home: Home, registry: str) -> None:
        self.cluster = cluster
        self.home = home
        self.registry = registry
        self.entrance = self.entrance_of()
        self.image = self.entrance.image(lambda _: None)
        self.stage = Stage(cluster, self.image)

    def entrance_of(self, **declared: Any) -> Entrance:
        known = {"registry": self.registry, "gateway_replicas": 2, **declared}
        return Entrance(self.cluster, Declaration("kube", kind="kubernetes", **known), self.home)

    def pods(self) -> list[dict[str, Any]]:
        """Return the gateway's pods that are not ending."""
        found = self.cluster.list("Pod", labels("gateway"))
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def names(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.pods()]

    def running(self) -> list[str]:
        """Return the gateway's pods with a container that runs."""
        found = [
            (pod, pod["status"].get("containerStatuses", ())) for pod in self.cluster.list("Pod", labels("gateway"))
        ]
        return [pod["metadata"]["name"] for pod, held in found if any("running" in one["state"] for one in held)]

    def call(self, path: str = PATH, body: Any = None) -> tuple[int, Any]:
        return call(self.entrance.url(), path, body)

    def result(self) -> Any:
        status, document = self.call()
        return document.get("result") if status == 200 else status

    def load(self, *, body: dict[str, Any] | None = None, rate: float = 100, threads: int = 24) -> Load:
        return Load(self.entrance.url() + PATH, "token", body or {}, rate=rate, threads=threads)


def call(url: str, path: str = PATH, body: Any = None) -> tuple[int, Any]:
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body or {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except OSError as error:
        return 0, {"error": str(error)}
    finally:
        connection.close()
