"""Records, replicas and gateways of a namespace, made by hand: what the plugin would write, and small stand-ins for models."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlflow_domino.cluster import Cluster
from mlflow_domino.config import Settings
from mlflow_domino.gateway.pulse import accepted
from mlflow_domino.labels import labels, lease_name, model_name
from mlflow_domino.models import Endpoint, RegistrySource, Status, Target, Version
from mlflow_domino.written import to_text
from tests.conftest import eventually, free_port

UPSTREAM = Path(__file__).resolve().parents[1] / "upstream.py"
E = "e" * 24
V1, V2 = "1" * 24, "2" * 24


@dataclass
class Stage:
    """One endpoint of a namespace.

    Attributes
    ----------
    image : str
        One with Python in it, for replicas that are pods.
    """

    cluster: Cluster
    image: str = ""

    def endpoint(self, latest: str | None, **fields: Any) -> None:
        record = Endpoint(E, "iris", "kube", 0, latest=latest, **fields)
        self._record(f"endpoint-{E}", labels("endpoint", endpoint=E), "endpoint.json", to_text(record))

    def version(self, version_id: str, *, status: Status = Status.RUNNING, replicas: int = 2, **fields: Any) -> None:
        settings = Settings(threads=32, **fields.pop("settings", {}))
        record = Version(
            version_id, E, int(version_id[0]), 0, RegistrySource("models:/m", "models:/m/1", "0"), settings,
            status=status, replicas=replicas, **{"target": Target.RUNNING, **fields},
        )  # fmt: skip
        own = labels("version", endpoint=E, version=version_id)
        self._record(f"version-{version_id}", own, "version.json", to_text(record))

    def _record(self, name: str, own: dict[str, str], key: str, text: str) -> None:
        meta = {"name": name, "labels": own}
        self.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {key: text}})

    def replicas(self, version_id: str, count: int) -> None:
        """Run pods that answer with the version's first digit, and go on answering for a while when told to end."""
        own = labels("model", endpoint=E, version=version_id)
        meta = {"name": model_name(version_id), "labels": own}
        probed = {"path": "/ready", "port": "http"}
        container = {
            "name": "model",
            "image": self.image,
            "command": [
                "/opt/domino/environment/bin/python",
                "-c",
                UPSTREAM.read_text(),
                "0.0.0.0:8080",
                version_id[0],
            ],
            "ports": [{"name": "http", "containerPort": 8080}],
            # Patient: the machine that runs both cluster and load may have no time for a second.
            "readinessProbe": {"httpGet": probed, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 6},
        }
        # As process 1 it ignores SIGTERM: it serves until its grace period is over.
        pod = {"containers": [container], "terminationGracePeriodSeconds": 10, "enableServiceLinks": False}
        template = {"metadata": {"labels": own}, "spec": pod}
        selector = {"matchLabels": own}
        spec: dict[str, Any] = {"replicas": count, "selector": selector, "template": template}
        self.cluster.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
        spec = {"selector": own, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
        self.cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
        eventually(lambda: self.ready(version_id) == count, within=180)

    def ready(self, version_id: str) -> int:
        deployment = self.cluster.get("Deployment", model_name(version_id)) or {}
        return int(deployment.get("status", {}).get("readyReplicas", 0))

    def addresses(self, version_id: str, *addresses: str) -> None:
        """Say by hand where replicas are."""
        own = {**labels("model", endpoint=E, version=version_id), "kubernetes.io/service-name": model_name(version_id)}
        ports = {int(address.rpartition(":")[2]) for address in addresses} or {8080}
        self.cluster.apply(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": f"{model_name(version_id)}-by-hand", "labels": own},
                "addressType": "IPv4",
                "endpoints": [{"addresses": [a.rpartition(":")[0]], "conditions": {"ready": True}} for a in addresses],
                "ports": [{"name": "http", "port": ports.pop(), "protocol": "TCP"}],
            }
        )

    def accepted(self, pod: str) -> int:
        lease = self.cluster.get("Lease", lease_name(pod))
        return accepted(lease) if lease else -1

    def forget(self, version_id: str) -> None:
        """Remove a version."""
        for kind in ("Deployment", "Service"):
            self.cluster.delete(kind, model_name(version_id))
        self.cluster.delete("ConfigMap", f"version-{version_id}")

    def clear(self) -> None:
        """Remove records, versions and what was said by hand."""
        for kind in ("ConfigMap", "Deployment", "Service", "EndpointSlice"):
            for what in ("endpoint", "version", "model", "generation"):
                for one in self.cluster.list(kind, labels(what)):
                    self.cluster.delete(kind, one["metadata"]["name"])
        eventually(lambda: not self.cluster.list("Pod", labels("model")), within=180)


def own_host(cluster: Cluster) -> str:
    """Return the address by which a cluster's machines know this one."""
    parts = urllib.parse.urlsplit(cluster.server)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "", parts.port or 443))
        return str(probe.getsockname()[0])


class Cable:
    """A way to an API server that can be cut."""

    def __init__(self, server: str) -> None:
        parts = urllib.parse.urlsplit(server)
        self._to = (parts.hostname or "", parts.port or 443)
        self._whole = threading.Event()
        self._whole.set()
        self._silent = False
        self._waiting: list[socket.socket] = []
        self._open: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, *, silently: bool = False) -> None:
        """End all connections; `silently`: who connects from now on waits for an answer in vain."""
        self._silent = silently
        self._whole.clear()
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole.set()
        while self._waiting:
            self._waiting.pop().close()

    def close(self) -> None:
        self.cut()
        self.mend()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if not self._whole.is_set():
                    if self._silent:
                        self._waiting.append(near)
                    else:
                        near.close()
                    continue
                far = socket.create_connection(self._to)
                for one, other in ((near, far), (far, near)):
                    self._open.add(one)
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_RDWR)
        one.close()
        self._open.discard(one)


def by_cable(path: Path, context: str, cable: Cable, *, name: str = "cable", token: str = "") -> Path:
    """Write a context down anew, by way of a cable."""
    documents = [yaml.safe_load(Path(p).read_text()) for p in os.environ["KUBECONFIG"].split(os.pathsep)]
    known = next(c["context"] for d in documents for c in d["contexts"] if c["name"] == context)
    cluster = next(c["cluster"] for d in documents for c in d["clusters"] if c["name"] == known["cluster"])
    user = next(u["user"] for d in documents for u in d["users"] if u["name"] == known["user"])
    document = {
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        # Its certificate is for 127.0.0.1, too.
        "clusters": [{"name": name, "cluster": {**cluster, "server": f"https://127.0.0.1:{cable.port}"}}],
        "users": [{"name": name, "user": {"token": token} if token else user}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


@dataclass
class Outpost:
    """A gateway's whole program on this machine, which believes to be a pod; it reaches its cluster by a cable."""

    cluster: Cluster
    folder: Path
    name: str = "outpost"
    port: int = field(default_factory=free_port)
    watcher_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self, cable: Cable, *, token: str = "") -> None:
        management = self.folder / "management"
        management.mkdir(exist_ok=True)
        (management / "management-token").write_text("m" * 64)
        environment = {
            **os.environ,
            "KUBECONFIG": str(by_cable(self.folder / "kubeconfig", self.cluster.context, cable, token=token)),
            "DOMINO_NAMESPACE": self.cluster.namespace,
            "DOMINO_POD": self.name,
            "DOMINO_POD_UID": "",
            "DOMINO_FOLDER": str(self.folder / "run"),
            "DOMINO_MANAGEMENT": str(management),
            "DOMINO_ADDRESS": "127.0.0.1",
            "DOMINO_PORT": str(self.port),
            "DOMINO_WATCHER_PORT": str(self.watcher_port),
        }
        with open(self.folder / "log", "ab") as log:
            argv = [sys.executable, "-m", "mlflow_domino.gateway.pod"]
            root = Path(__file__).resolve().parents[2]
            self.process = subprocess.Popen(argv, env=environment, cwd=root, stdout=log, stderr=log)

    def end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextlib.contextmanager
def upstream(host: str, name: str) -> Iterator[str]:
    """Run a replica's stand-in on this machine; yield its address."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-I", str(UPSTREAM), f"{host}:{port}", name]
    with subprocess.Popen(argv) as process:
        try:
            yield f"{host}:{port}"
        finally:
            process.kill()
