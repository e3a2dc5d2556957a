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
import hashlib
import json
import os
import random
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow_domino import secret, tree
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.data_planes.assembly import Assembly, recipes, working_folder
from mlflow_domino.data_planes.base import Log, World
from mlflow_domino.data_planes.container import STATUS, TOKENS, Label, Launch, state_of
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.machine import MachineDataPlane, harness_settings
from mlflow_domino.data_planes.replica import ReplicaState
from mlflow_domino.data_planes.tier import unenforced
from mlflow_domino.engine import Engine
from mlflow_domino.errors import DominoError, Failed, InvalidInput, NotFound, Unavailable
from mlflow_domino.home import Home, read_json, write_text
from mlflow_domino.image import UID
from mlflow_domino.models import Artifact, Endpoint, Target, Token, Version

__all__ = ["DockerDataPlane"]

#: Below the ports that the kernel gives to outgoing connections.
_PORTS = range(20000, 32000)
_ATTEMPTS = 20
_ENDED = ("created", "exited", "dead", "removing")


class DockerDataPlane(MachineDataPlane):
    """Runs versions as containers of the engine on this machine."""

    #: Digests only, for the containers' own user; the home is closed to others.
    tokens_mode = 0o644

    def __init__(self, home: Home, declaration: Declaration) -> None:
        super().__init__(replace(home, plane=declaration.name), declaration)
        self.engine = Engine()
        self.assembly = Assembly(self.home, lambda: self.engine, declaration.base_image)

    # ---- the contract ------------------------------------------------------------------------------------------------

    def up(self, world: World, log: Log) -> bool:
        self.engine.check()
        self.home.ensure()
        return super().up(world, log)

    def clear(self, world: World) -> None:
        super().clear(world)
        wanted = {v.id for v in world.versions if v.target is Target.RUNNING}
        for container in self.containers() if world.endpoints else ():
            if container["Labels"][Label.VERSION] not in wanted:
                self.engine.remove(container["Id"])

    def end_all(self) -> None:
        for container in self.containers():
            self.engine.remove(container["Id"])

    def render(self, world: World, endpoint: Endpoint, version: Version, secrets: Secrets) -> dict[str, str]:
        settings = harness_settings(endpoint, version, path=working_folder(version), tokens=TOKENS)
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

    def render_context(self, version: Version, secrets: Secrets, folder: Path, log: Log) -> str:
        return self.assembly.render(version, secrets, folder, log)

    def build(self, version: Version, secrets: Secrets, log: Log) -> Artifact:
        notes = unenforced(version.settings, self.home, self.declaration)
        for volume in version.settings.volumes:
            if not Path(volume.path).is_dir():
                raise InvalidInput(f"volumes: {volume.name}: there is no folder {volume.path} on this machine.")
        built = self.assembly.build(version, secrets, log)
        return replace(built, notes=(*built.notes, *notes))

    def start(self, endpoint: Endpoint, version: Version) -> None:
        there = {int(c["Labels"][Label.REPLICA]): c for c in self.containers(version)}
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
        sockets = {int(c["Labels"][Label.REPLICA]): c["Labels"].get(Label.SOCKET) for c in self.containers(version)}
        return tuple(sockets.get(n) or port for n, port in enumerate(self._published(version, Label.PORT)))

    def message_addresses(self, version: Version) -> tuple[str, ...]:
        return self._published(version, Label.MESSAGES)

    def _published(self, version: Version, label: str) -> tuple[str, ...]:
        labels = [container["Labels"] for container in self.containers(version)]
        ports = {int(told[Label.REPLICA]): told[label] for told in labels if label in told}
        # Nobody listens on the lowest ports: what has no container counts as dead, until it has one again.
        return tuple(f"127.0.0.1:{ports.get(n, n + 1)}" for n in range(version.replicas))

    def state(self, version: Version, number: int) -> ReplicaState:
        try:
            container = self.engine.container(_name(version, number))
        except DominoError as error:
            return ReplicaState(number, "lost", error.message)
        if container is None:
            return ReplicaState(number, "lost", "its container is gone; `mlflow-domino endpoint start` makes another")
        return state_of(number, container, self._said(version, number))

    # ---- inside ------------------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """Which home's data plane a container belongs to."""
        return hashlib.sha256(os.fsencode(f"{self.home.root}\0{self.name}")).hexdigest()[:16]

    def containers(self, version: Version | None = None) -> list[dict[str, Any]]:
        """Return this data plane's containers, running or not, in Docker's short form; all, or a version's."""
        labels = {Label.HOME: self.label}
        if version is not None:
            labels[Label.VERSION] = version.id
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
        settings = harness_settings(endpoint, version, path=working_folder(version), tokens=TOKENS)
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
            empty = ["/bin/sh", "-c", f"rm -rf {STATUS}/* {STATUS}/.[!.]* {STATUS}/..?*"]
            self.engine.run(version.artifact.environment, empty, user=str(UID), folders={str(folder): STATUS})
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


def _free_ports() -> Iterator[int]:
    """Yield some ports of the loopback that nobody listens on."""
    for port in random.sample(_PORTS, _ATTEMPTS * 10):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            yield port


def _name(version: Version, number: int) -> str:
    return f"model-{version.id}-{number}"
