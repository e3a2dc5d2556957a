"""The Docker data plane: replicas as containers of this machine's engine, the same Envoy in front.

Each replica's port is published on the loopback. Where containers run on this machine's own kernel, Envoy takes
another way to the same replica, a socket in a mounted folder: Docker copies what goes to a published port of the
loopback in a process of its own, which costs more than the harness itself (tried: 0.7 ms of CPU a request, 0.15 by the
socket).

A container is found by its labels, never by a note: home, version, replica and port stand there. What a replica says
of itself, its log and the tokens that it takes are in folders of the version's that are mounted, as on the local data
plane, so that status, draining and tokens need no request to it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_domino import secret, tree
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.data_planes.assembly import Assembly, recipes, working_folder
from mlflow_domino.data_planes.base import Log, World
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.machine import HARNESS_PACKAGE, MachineDataPlane, harness_settings
from mlflow_domino.data_planes.replica import ReplicaState
from mlflow_domino.data_planes.tier import Tier, tier_named, unenforced
from mlflow_domino.engine import Engine
from mlflow_domino.errors import DominoError, Failed, InvalidInput, NotFound, Unavailable
from mlflow_domino.home import Home, read_json, write_text
from mlflow_domino.image import ENVIRONMENT, UID
from mlflow_domino.models import Artifact, Endpoint, Target, Token, Version

if TYPE_CHECKING:
    pass

__all__ = ["DockerDataPlane"]

_PORT, _MESSAGE_PORT = 8080, 9000
#: Below the ports that the kernel gives to outgoing connections.
_PORTS = range(20000, 32000)
_ATTEMPTS = 20
_HOME, _VERSION, _ENDPOINT, _REPLICA, _PUBLISHED, _MESSAGES, _SOCKET = (
    f"mlflow-domino.{name}" for name in ("home", "version", "endpoint", "replica", "port", "messages", "socket")
)
#: Folders in the container.
_STATUS, _LOGS, _TOKENS = "/run/domino/replica", "/run/domino/logs", "/run/domino/tokens"
_SOCKETS = "/run/domino/socket"
_ENDED = ("created", "exited", "dead", "removing")


class DockerDataPlane(MachineDataPlane):
    """Runs versions as containers of the engine on this machine."""

    #: Digests only, for the containers' own user; the home is closed to others.
    tokens_mode = 0o644

    def __init__(self, home: Home, declaration: Declaration) -> None:
        super().__init__(replace(home, plane=declaration.name), declaration)
        self.engine = Engine()
        self.assembly = Assembly(self.home, self.engine, declaration.base_image)

    # ---- the contract ------------------------------------------------------------------------------------------------

    def up(self, world: World, log: Log) -> bool:
        self.engine.check()
        self.home.ensure()
        return super().up(world, log)

    def clear(self, world: World) -> None:
        super().clear(world)
        wanted = {v.id for v in world.versions if v.target is Target.RUNNING}
        for container in self.containers() if world.endpoints else ():
            if container["Labels"][_VERSION] not in wanted:
                self.engine.remove(container["Id"])

    def end_all(self) -> None:
        for container in self.containers():
            self.engine.remove(container["Id"])

    def render(self, world: World, endpoint: Endpoint, version: Version, secrets: Secrets) -> dict[str, str]:
        settings = harness_settings(endpoint, version, path=working_folder(version), tokens=_TOKENS)
        documents: dict[str, Any] = {"harness.json": settings}
        for number in range(version.replicas):
            hidden = dict.fromkeys(secrets.variables, "…")
            launch = Launch.of(self, endpoint, version, number, (_PORTS[number], _PORTS[-1 - number]), hidden)
            documents[f"container-{number}.json"] = {"host": launch.host, **launch.options}
        files = {name: json.dumps(document, indent=1) + "\n" for name, document in documents.items()}
        files |= recipes(version.settings)
        shown = self.gateway.render(
            world, lambda v: tuple(f"127.0.0.1:{_PORTS[n]}" for n in range(v.replicas))
        )  # nothing is asked of an engine
        return {**files, **shown}

    def build(self, version: Version, secrets: Secrets, log: Log) -> Artifact:
        notes = unenforced(version.settings, self.home, self.declaration)
        for volume in version.settings.volumes:
            if not Path(volume.path).is_dir():
                raise InvalidInput(f"volumes: {volume.name}: there is no folder {volume.path} on this machine.")
        built = self.assembly.build(version, secrets, log)
        return replace(built, notes=(*built.notes, *notes))

    def start(self, endpoint: Endpoint, version: Version) -> None:
        there = {int(c["Labels"][_REPLICA]): c for c in self.containers(version)}
        for number, container in there.items():
            if number >= version.replicas or container["State"] in _ENDED:
                self.engine.remove(container["Id"])
        for number in range(version.replicas):
            if number not in there or there[number]["State"] in _ENDED:
                self._run(endpoint, version, number)

    def stop(self, version: Version) -> None:
        for container in self.containers(version):
            self.engine.remove(container["Id"])
        for folder in (self.home.version(version.id) / "replicas").glob("*"):
            self._remove_folder(version, folder)
        for folder in self._sockets.glob(f"{version.id}-*"):
            tree.remove(folder)

    def discard(self, version: Version) -> None:
        self.assembly.discard(version)
        super().discard(version)

    def leftovers(self, before_s: float) -> list[tuple[str, int]]:
        return self.assembly.images.unused(before_s)

    def remove_leftover(self, name: str) -> None:
        self.engine.remove_image(name)

    def requirements(self, settings: Settings) -> tuple[str, ...]:
        return self.assembly.requirements(settings)

    def export(self, version: Version, reference: str, log: Log, *, user: tuple[str, str] | None = None) -> str:
        return self.assembly.export(version, reference, log, user=user)

    def addresses(self, version: Version) -> tuple[str, ...]:
        sockets = {int(c["Labels"][_REPLICA]): c["Labels"].get(_SOCKET) for c in self.containers(version)}
        return tuple(sockets.get(n) or port for n, port in enumerate(self._published(version, _PUBLISHED)))

    def message_addresses(self, version: Version) -> tuple[str, ...]:
        return self._published(version, _MESSAGES)

    def _published(self, version: Version, label: str) -> tuple[str, ...]:
        labels = [container["Labels"] for container in self.containers(version)]
        ports = {int(told[_REPLICA]): told[label] for told in labels if label in told}
        # Nobody listens on the lowest ports: what has no container counts as dead, until it has one again.
        return tuple(f"127.0.0.1:{ports.get(n, n + 1)}" for n in range(version.replicas))

    def state(self, version: Version, number: int) -> ReplicaState:
        try:
            container = self.engine.container(_name(version, number))
        except DominoError as error:
            return ReplicaState(number, "lost", error.message)
        if container is None:
            return ReplicaState(number, "lost", "its container is gone; `mlflow-domino endpoint start` makes another")
        return _state(number, container, self._said(version, number))

    # ---- inside ------------------------------------------------------------------------------------------------------

    @property
    def _label(self) -> str:
        """Which home's data plane a container belongs to."""
        return hashlib.sha256(os.fsencode(f"{self.home.root}\0{self.name}")).hexdigest()[:16]

    def containers(self, version: Version | None = None) -> list[dict[str, Any]]:
        """Return this data plane's containers, running or not, in Docker's short form; all, or a version's."""
        labels = {_HOME: self._label}
        if version is not None:
            labels[_VERSION] = version.id
        return self.engine.containers(labels)

    def _run(self, endpoint: Endpoint, version: Version, number: int) -> None:
        """Make and start the container of a replica.

        Raises
        ------
        Failed
            With the engine's words, such as that the image is gone.
        """
        if version.artifact is None:
            raise Failed(f"Version {version.number} was never built.")
        folder = self._prepare(endpoint, version, number)
        socket_folder = self._socket_folder(version, number)
        variables = secret.load(self.home.version(version.id) / "secrets.json").variables
        name = _name(version, number)
        free = _free_ports()
        for ports in zip(free, free, strict=False):
            launch = Launch.of(self, endpoint, version, number, ports, variables)
            launch = launch.with_socket(socket_folder) if socket_folder else launch
            try:
                self.engine.create(name, version.artifact.environment, host=launch.host, **launch.options)
                self.engine.start(name)
            except NotFound as error:
                raise Failed(
                    f"The image of version {version.number}, {version.artifact.environment}, is not on this machine any "
                    "more; `update` builds a new version."
                ) from error
            except Failed as error:
                self.engine.remove(name)
                if "port is already allocated" in str(error) or "address already in use" in str(error):
                    continue
                raise
            return
        raise Unavailable(f"No free port on 127.0.0.1 for replica {number} in {folder}.")

    def _prepare(self, endpoint: Endpoint, version: Version, number: int) -> Path:
        """Make the folders that are mounted; the container's user writes there, nobody else gets past the home."""
        folder = self.replica_folder(version, number)
        self._remove_folder(version, folder)
        settings = harness_settings(endpoint, version, path=working_folder(version), tokens=_TOKENS)
        write_text(folder / "harness.json", json.dumps(settings, indent=1, sort_keys=True) + "\n", mode=0o644)
        if not (self.home.tokens(endpoint.id) / "tokens.json").exists():
            self.write_tokens(endpoint, ())
        written = self.home.version(version.id) / "logs"
        for path in (folder, written):
            path.mkdir(mode=0o777, exist_ok=True)
            path.chmod(0o777)  # whatever the umask is
        return folder

    @property
    def _sockets(self) -> Path:
        """Folder of what outlives the supervisor, as containers do."""
        return self.home.run / "sockets"

    def _socket_folder(self, version: Version, number: int) -> Path | None:
        """Make the folder of a replica's socket; None where only the published port leads into the container.

        Seldon's messages come by a port, and the harness of an asynchronous version knows one or the other. A folder
        outside of the home is gone when the machine starts again, and the container comes back without it.
        """
        if version.settings.is_async or not self.home.run.is_relative_to(self.home.root):
            return None
        if not self.engine.shares_kernel():
            return None
        folder = self._sockets / f"{version.id}-{number}"
        with contextlib.suppress(FileNotFoundError):
            tree.remove(folder)
        folder.mkdir(parents=True)
        folder.chmod(0o777)  # whatever the umask is; nobody else gets past the home
        return folder

    def _remove_folder(self, version: Version, folder: Path) -> None:
        """Remove a replica's folder, in which the container's user may have made folders that we cannot empty."""
        try:
            tree.remove(folder)
        except PermissionError:
            if version.artifact is None:
                raise
            folder.chmod(0o777)
            empty = ["/bin/sh", "-c", f"rm -rf {_STATUS}/*"]
            self.engine.run(version.artifact.environment, empty, user=str(UID), folders={str(folder): _STATUS})
            tree.remove(folder)

    def write_tokens(self, endpoint: Endpoint, tokens: Sequence[Token]) -> bytes:
        folder = self.home.tokens(endpoint.id)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # mounted, so that the folders around it do not count
        return super().write_tokens(endpoint, tokens)

    def _said(self, version: Version, number: int) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            document = read_json(self.replica_folder(version, number) / "status.json")
            if isinstance(document, dict):
                return document
        return {}


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
            str(plane.replica_folder(version, number)): {"bind": _STATUS, "mode": "rw"},
            str(folder / "logs"): {"bind": _LOGS, "mode": "rw"},
            str(plane.home.tokens(endpoint.id)): {"bind": _TOKENS, "mode": "ro"},
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
            "DOMINO_HARNESS_CONFIG": f"{_STATUS}/harness.json",
            "DOMINO_REPLICA_DIR": _STATUS,
            "DOMINO_PORT": str(_PORT),
            "DOMINO_VARIABLES": ",".join(variables),
        }
        labels = {
            _HOME: plane._label, _VERSION: version.id, _ENDPOINT: endpoint.id, _REPLICA: str(number),
            _PUBLISHED: str(ports[0]), "mlflow-domino.name": endpoint.name,
        }  # fmt: skip
        if version.settings.is_async:
            published[_MESSAGE_PORT] = ("127.0.0.1", ports[1])
            labels[_MESSAGES] = str(ports[1])
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
        environment["DOMINO_LOG"] = f"{_LOGS}/replica-{number}.log"
        return cls(host, options)

    def with_socket(self, folder: Path) -> Launch:
        """Have the replica listen on a socket in a folder of this machine, too."""
        host = {**self.host, "binds": {**self.host["binds"], str(folder): {"bind": _SOCKETS, "mode": "rw"}}}
        environment = {**self.options["environment"], "DOMINO_SOCKET": f"{_SOCKETS}/http"}
        labels = {**self.options["labels"], _SOCKET: str(folder / "http")}
        return replace(self, host=host, options={**self.options, "environment": environment, "labels": labels})


_COMMAND = (f"{ENVIRONMENT}/bin/python", "-I", f"/opt/domino/harness/{HARNESS_PACKAGE}/launch.py")


def _longest_s(settings: Settings) -> float:
    """Return how long a request may take, as far as whoever ends its replica waits for it."""
    return max(settings.request_timeout_s, settings.drain_s) if settings.is_async else settings.request_timeout_s


def _state(number: int, container: Mapping[str, Any], said: Mapping[str, Any]) -> ReplicaState:
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


def _free_ports() -> Iterator[int]:
    """Yield some ports of the loopback that nobody listens on."""
    for port in random.sample(_PORTS, _ATTEMPTS * 10):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            yield port


def _name(version: Version, number: int) -> str:
    return f"model-{version.id}-{number}"
