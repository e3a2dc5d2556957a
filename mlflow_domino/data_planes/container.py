"""Containers of replicas: what Docker is told of one, and what one is by what Docker and the harness say."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_domino.config import Settings
from mlflow_domino.data_planes.machine import HARNESS_PACKAGE
from mlflow_domino.data_planes.replica import ReplicaState
from mlflow_domino.data_planes.tier import Tier, tier_named
from mlflow_domino.image import ENVIRONMENT, UID
from mlflow_domino.models import Endpoint, Version

if TYPE_CHECKING:
    from mlflow_domino.data_planes.docker import DockerDataPlane

__all__ = ["LOGS", "SOCKETS", "STATUS", "TOKENS", "Label", "Launch", "state_of"]

_PORT, _MESSAGE_PORT = 8080, 9000
#: Folders in the container.
STATUS, LOGS, TOKENS = "/run/domino/replica", "/run/domino/logs", "/run/domino/tokens"
SOCKETS = "/run/domino/socket"


class Label:
    """Names of the labels by which a container is known, whoever lost what."""

    HOME = "mlflow-domino.home"
    NAME = "mlflow-domino.name"
    VERSION = "mlflow-domino.version"
    ENDPOINT = "mlflow-domino.endpoint"
    REPLICA = "mlflow-domino.replica"
    PORT = "mlflow-domino.port"
    MESSAGES = "mlflow-domino.messages"
    SOCKET = "mlflow-domino.socket"


@dataclass(frozen=True)
class Launch:
    """What Docker is told of a replica.

    Attributes
    ----------
    host, options : mapping
        Of the API's `create_host_config` and `create_container`.
    """

    host: Mapping[str, Any]
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls, plane: DockerDataPlane, endpoint: Endpoint, version: Version, number: int, ports: tuple[int, int],
        variables: Mapping[str, str],
    ) -> Launch:  # fmt: skip
        published = {_PORT: ("127.0.0.1", ports[0])}
        folder = plane.home.version(version.id)
        binds = {
            str(plane.replica_folder(version, number)): {"bind": STATUS, "mode": "rw"},
            str(folder / "logs"): {"bind": LOGS, "mode": "rw"},
            str(plane.home.tokens(endpoint.id)): {"bind": TOKENS, "mode": "ro"},
        }
        host = {
            "restart_policy": {"Name": "unless-stopped"},
            "port_bindings": published,
            "binds": binds,
            "mounts": [
                {"Type": "bind", "Source": v.path, "Target": v.mount_path, "ReadOnly": v.read_only}
                for v in version.settings.volumes
            ],
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "init": True,
            **_limits(tier_named(version.settings.hardware_tier, plane.home)),
            "log_config": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}},
        }
        environment = {
            **variables,
            "DOMINO_HARNESS_CONFIG": f"{STATUS}/harness.json",
            "DOMINO_REPLICA_DIR": STATUS,
            "DOMINO_PORT": str(_PORT),
            "DOMINO_VARIABLES": ",".join(variables),
        }
        labels = {
            Label.HOME: plane.label, Label.VERSION: version.id, Label.ENDPOINT: endpoint.id, Label.REPLICA: str(number),
            Label.PORT: str(ports[0]), Label.NAME: endpoint.name,
        }  # fmt: skip
        if version.settings.is_async:
            published[_MESSAGE_PORT] = ("127.0.0.1", ports[1])
            labels[Label.MESSAGES] = str(ports[1])
            environment["DOMINO_SELDON_PORT"] = str(_MESSAGE_PORT)
        options = {
            "environment": environment,
            "labels": labels,
            "user": f"{UID}:{UID}",
            "ports": list(published),
            # Longer than a request may take: who stops a container by hand cuts nothing off.
            "stop_timeout": math.ceil(_longest_s(version.settings)) + 5,
            # What it says goes to the version's log, which outlives the container.
            "entrypoint": ["/bin/sh", "-c", 'umask 022; exec "$0" "$@" >>"$DOMINO_LOG" 2>&1', *_COMMAND],
        }
        environment["DOMINO_LOG"] = f"{LOGS}/replica-{number}.log"
        return cls(host, options)

    def with_socket(self, folder: Path) -> Launch:
        """Have the replica listen on a socket in a folder of this machine, too."""
        host = {**self.host, "binds": {**self.host["binds"], str(folder): {"bind": SOCKETS, "mode": "rw"}}}
        environment = {**self.options["environment"], "DOMINO_SOCKET": f"{SOCKETS}/http"}
        labels = {**self.options["labels"], Label.SOCKET: str(folder / "http")}
        return replace(self, host=host, options={**self.options, "environment": environment, "labels": labels})


_COMMAND = (f"{ENVIRONMENT}/bin/python", "-I", f"/opt/domino/harness/{HARNESS_PACKAGE}/launch.py")


def _longest_s(settings: Settings) -> float:
    """Return how long a request may take, as far as whoever ends its replica waits for it."""
    return max(settings.request_timeout_s, settings.drain_s) if settings.is_async else settings.request_timeout_s


def state_of(number: int, container: Mapping[str, Any], said: Mapping[str, Any]) -> ReplicaState:
    """Say what a replica is, from what the engine sees and what the harness wrote."""
    seen = container["State"]
    since_ms = int(said.get("since_ms", 0))
    current = since_ms >= _started_ms(seen) - 1000
    harness = ReplicaState(
        number, str(said.get("state", "absent")), str(said.get("reason", "")), str(said.get("detail", "")), since_ms
    )
    if harness.state == "failed":
        return harness
    if seen.get("OOMKilled") and not (seen["Running"] and harness.state == "ready" and current):
        limit = container["HostConfig"].get("Memory") or 0
        return ReplicaState(number, "failed", f"it was killed for want of memory (limit {limit >> 20} MiB)")
    if seen.get("Error"):
        return ReplicaState(number, "failed", f"its container cannot be started: {seen['Error']}")
    if seen["Status"] == "paused":
        return ReplicaState(number, "lost", "its container is paused; `docker unpause` lets it go on")
    if not seen["Running"] or seen.get("Restarting"):
        code = seen.get("ExitCode")
        if not since_ms or (code and harness.state != "ready"):
            return ReplicaState(number, "failed", f"its container ended with code {code}")
        return ReplicaState(
            number,
            "lost",
            f"it ended with code {code}" + (" and is being started again" if seen.get("Restarting") else ""),
        )
    return harness if current else ReplicaState(number, "absent")


def _started_ms(seen: Mapping[str, Any]) -> int:
    text = str(seen.get("StartedAt", ""))[:19]
    try:
        moment = datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return 0
    return int(moment.timestamp() * 1000)


def _limits(tier: Tier) -> dict[str, Any]:
    """Return a tier as options of `create_host_config`; memory is no swap either, or its limit would be another."""
    limits: dict[str, Any] = {}
    if tier.cores:
        limits["nano_cpus"] = int(tier.cores * 1e9)
    if tier.memory:
        limits["mem_limit"] = limits["memswap_limit"] = tier.memory
    if tier.gpus:
        limits["device_requests"] = [{"Driver": "", "Count": tier.gpus, "Capabilities": [["gpu"]], "Options": {}}]
    return limits
