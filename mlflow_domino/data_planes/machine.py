"""What all data planes of this machine share: the supervised gateway, the folders of versions and replicas, tokens."""

from __future__ import annotations

import abc
import contextlib
import hashlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_domino import logs, secret, source
from mlflow_domino.data_planes import replica
from mlflow_domino.data_planes.base import DataPlane, Log, Observation, World
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.gateway import LocalGateway
from mlflow_domino.data_planes.supervisor import Supervisor, wait_until
from mlflow_domino.errors import DominoError, GatewayFailed, Unavailable
from mlflow_domino.home import Home, write_json, write_text
from mlflow_domino.models import Endpoint, Status, Target, Token, Version

__all__ = ["HARNESS_PACKAGE", "MachineDataPlane", "harness_files", "harness_settings", "install_harness"]

_TAIL_LINES = 30
_LOOKED_AT = 200
_ACKNOWLEDGE_S, _QUICK_S = 10.0, 2.0
_LOOK_S = 0.01
_IDLE_LOOKS = 20
_DISPATCHER = "dispatcher"
HARNESS_PACKAGE = "_mlflow_domino_harness"


class MachineDataPlane(DataPlane):
    """A data plane whose replicas show their state in folders of this machine, behind an Envoy of its own.

    To write, beside `render`, `build`, `start` and `stop`: `addresses` and `state`; `clear` and `end_all` where there
    is more to do.
    """

    #: Of the file with the digests of tokens.
    tokens_mode = 0o600

    def __init__(self, home: Home, declaration: Declaration) -> None:
        self.name = declaration.name
        self.home = home
        self.declaration = declaration
        if declaration.exposed and not declaration.tls_certificate and not declaration.url.startswith("https://"):
            self.caution = "the gateway is exposed without TLS: tokens travel in clear; set tls_certificate and tls_key"
        self.no_async = declaration.no_async
        self.supervisor = Supervisor(home)
        self.gateway = LocalGateway(home, declaration, self.addresses, self.message_addresses)

    @abc.abstractmethod
    def addresses(self, version: Version) -> tuple[str, ...]:
        """Return where each replica of the version is reached: sockets' paths, or host:port."""

    @abc.abstractmethod
    def message_addresses(self, version: Version) -> tuple[str, ...]:
        """Return where each replica of an asynchronous version takes Seldon messages, in the same forms."""

    @abc.abstractmethod
    def state(self, version: Version, number: int) -> replica.ReplicaState:
        """Tell what a replica is now; never raises for one that is dead or absent."""

    def clear(self, world: World) -> None:
        """Forget what a supervisor that is gone left behind."""
        for folder in ("s", "vassals", "launch"):
            path = self.home.run / folder
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(mode=0o700, parents=True, exist_ok=True)  # a verb that is at work may have been quicker

    def end_all(self) -> None:
        """End the replicas that do not end with the supervisor."""

    def url(self) -> str:
        before = self.gateway.moved_from()
        return (before if before is not None and self.supervisor.alive() else self.declaration).base_url

    def remark(self) -> str:
        before = self.gateway.moved_from()
        if before is None:
            return ""
        command = "mlflow-domino" + ("" if self.name == "local" else f" -t domino:/{self.name}")
        return (
            f"the gateway was started at {_place(before)}; `{command} down`, then `up`, moves it to {_place(self.declaration)}, "
            f"as {self.home.config.name} has it"
        )

    def up(self, world: World, log: Log) -> bool:
        with self.home.lock(self._lock):
            if self.supervisor.alive():
                return False
            self.gateway.check_port()
            self.clear(world)
            for endpoint in world.endpoints:
                for version in world.versions:
                    if version.endpoint_id == endpoint.id and version.target is Target.RUNNING:
                        self._start_again(endpoint, version)
            self.gateway.prepare(world)
            self.supervisor.put("gateway", self.gateway.launch())
            self._keep_dispatcher(world)
            self.supervisor.start(self.gateway.envoy_argv())
            self.gateway.await_ready()
            return True

    def down(self) -> None:
        with self.home.lock(self._lock):
            self.supervisor.stop()
            self.end_all()
            self.clear(World((), ()))
            if not self.home.run.is_relative_to(self.home.root):  # in /tmp, where nobody would tidy it up
                shutil.rmtree(self.home.run, ignore_errors=True)

    def alive(self) -> bool:
        return self.supervisor.alive()

    def discard(self, version: Version) -> None:
        source.remove(self.home.version(version.id))

    def forget(self, endpoint: Endpoint) -> None:
        if endpoint.settings.is_async:
            self.gateway.forget_predictions(endpoint)
        shutil.rmtree(self.home.endpoint(endpoint.id), ignore_errors=True)
        self.home.caller_token(endpoint.id).unlink(missing_ok=True)

    def observe(self, versions: Sequence[Version]) -> list[Observation]:
        alive = self.supervisor.alive() if any(v.target is Target.RUNNING for v in versions) else False
        return [self._observe(version, alive) for version in versions]

    def publish(self, world: World) -> None:
        if self.supervisor.alive():
            self.gateway.publish(world)
            self._keep_dispatcher(world)

    def drain(self, version: Version, timeout_s: float, *, replicas: Sequence[int] | None = None) -> bool:
        folders = [self.replica_folder(version, n) for n in (range(version.replicas) if replicas is None else replicas)]

        # Of a whole version Envoy tells what still waits at a replica; of some replicas only that they have been idle
        # for longer than the pause between two requests of a queue.
        wanted = 1 if replicas is None else _IDLE_LOOKS
        looks = 0

        def idle() -> bool:
            nonlocal looks
            busy = any(map(replica.in_flight, folders)) or (replicas is None and self._is_called(version))
            looks = 0 if busy else looks + 1
            return looks >= wanted

        return not self.supervisor.alive() or wait_until(idle, timeout_s, every_s=_LOOK_S)

    def _keep_dispatcher(self, world: World) -> None:
        """Have a dispatcher run while there is an asynchronous endpoint, and only then."""
        if any(endpoint.settings.is_async for endpoint in world.endpoints):
            self.supervisor.put(_DISPATCHER, self.gateway.dispatcher())
        elif _DISPATCHER in self.supervisor.names():
            self.supervisor.remove([_DISPATCHER])

    def _start_again(self, endpoint: Endpoint, version: Version) -> None:
        """Start a version; where that fails its own status says why, and the others start all the same."""
        try:
            self.start(endpoint, version)
        except DominoError as error:
            for number in range(version.replicas):
                status = {"state": "failed", "reason": error.message, "since_ms": int(time.time() * 1000)}
                write_json(self.replica_folder(version, number) / "status.json", status)

    def _is_called(self, version: Version) -> bool:
        try:
            return self.gateway.active(version.id) > 0
        except GatewayFailed:
            return True  # an Envoy that was killed is back in a moment

    def put_tokens(self, endpoint: Endpoint, tokens: Sequence[Token], versions: Sequence[Version], say: Log) -> None:
        content = self.write_tokens(endpoint, tokens)
        ready = [
            (self.replica_folder(v, n), v.settings.workers)
            for v in versions
            if v.target is Target.RUNNING
            for n in range(v.replicas)
            if self.state(v, n).state == "ready"
        ]

        def all_taken() -> bool:
            return all(replica.acknowledged(f, content, w) for f, w in ready)

        if wait_until(all_taken, _QUICK_S):
            return
        say("waiting until every replica has the change of tokens …")
        if not wait_until(all_taken, _ACKNOWLEDGE_S - _QUICK_S):
            raise Unavailable(
                f"Not every replica of {endpoint.name!r} took the change of tokens within {_ACKNOWLEDGE_S:g} s; each "
                "takes it with its next request. `mlflow-domino status` shows what they do."
            )

    def own_token(self, endpoint: Endpoint) -> str:
        path = self.home.gateway_token(endpoint.id)
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        token = secret.new_token()
        write_text(path, token)
        return token

    def write_tokens(self, endpoint: Endpoint, tokens: Sequence[Token]) -> bytes:
        """Write the file that replicas read, and return what it holds."""
        path = self.home.tokens(endpoint.id) / "tokens.json"
        own = secret.digest(self.own_token(endpoint))
        valid = [{"id": t.id, "sha256": t.sha256} for t in tokens]
        write_json(path, {"tokens": [*valid, {"id": "gateway", "sha256": own}]}, mode=self.tokens_mode)
        return path.read_bytes()

    def logs(self, version: Version, *, build: bool = False, replica: int | None = None) -> list[Path]:
        folder = self.home.version(version.id)
        if build:
            return [folder / "build.log"]
        found = sorted((folder / "logs").glob("replica-*.log"), key=lambda p: int(p.stem.split("-")[1]))
        return [p for p in found if replica in (None, int(p.stem.split("-")[1]))]

    def replica_folder(self, version: Version, number: int) -> Path:
        """Return the folder of a replica's status."""
        return self.home.version(version.id) / "replicas" / str(number)

    @property
    def _lock(self) -> str:
        return "supervisor" if self.home.plane == "local" else f"supervisor-{self.home.plane}"

    def _observe(self, version: Version, alive: bool) -> Observation:
        if version.target is not Target.RUNNING:
            return Observation(Status.STOPPED)
        if not alive:
            return Observation(Status.UNREACHABLE, "the supervisor does not run; `mlflow-domino up` starts it")
        states = [self.state(version, n) for n in range(version.replicas)]
        seen = replica.summary(version, states)
        if seen.status is Status.RUNNING and not seen.failed:
            return seen
        guilty = next((s for s in states if s.state == "failed"), next(s for s in states if s.state != "ready"))
        return Observation(seen.status, seen.reason, seen.ready, seen.failed, self._tail(version, guilty))

    def _tail(self, version: Version, state: replica.ReplicaState) -> str:
        values = secret.load(self.home.version(version.id) / "secrets.json").variables.values()
        paths = self.logs(version, replica=state.number)
        text = logs.tail(paths[0], _LOOKED_AT, values=values) if paths else ""
        return logs.explaining(text, _TAIL_LINES)


_HARNESS_SETTINGS = (
    "is_async", "async_timeout_s", "workers", "threads", "preload", "max_queue", "max_batch_size", "max_batch_delay_ms", "worker_max_requests",
    "worker_max_memory", "request_timeout_s", "max_body", "drain_s", "start_timeout_s", "strict_schema", "debug", "log_http_request_response", "warmup_file",
)  # fmt: skip


def _place(declaration: Declaration) -> str:
    return (
        f"port {declaration.port} of {declaration.address}, {'with' if declaration.tls_certificate else 'without'} TLS"
    )


def harness_settings(
    endpoint: Endpoint | None, version: Version, *, path: str, tokens: str | None, seldon_python: str | None = None
) -> dict[str, Any]:
    """Return what ``harness.json`` holds.

    Parameters
    ----------
    endpoint : Endpoint or None
        None where it is not known, or does not matter: its name is a title.
    path : str
        Folder of the model or project, as the replica sees it.
    tokens : str or None
        Folder of ``tokens.json``, as the replica sees it; None where tokens come from the environment alone.
    seldon_python : str or None
        Python of seldon-core, as the replica sees it; None where the build has written that down.
    """
    if seldon_python is None:
        unknown = "PYTHON-OF-SELDON-CORE" if version.settings.is_async else ""
        seldon_python = version.artifact.seldon if version.artifact else unknown
    place: dict[str, Any] = {"kind": version.source.kind, "path": path}
    if version.source.kind == "Registry":
        place.update(name=getattr(version.source, "name", None), version=getattr(version.source, "version", None))
    else:
        place.update(file=getattr(version.source, "file", ""), function=getattr(version.source, "function", ""))
    return {
        "endpoint_id": version.endpoint_id,
        "endpoint_name": endpoint.name if endpoint else None,
        "version_id": version.id,
        "version_number": version.number,
        "source": place,
        "tokens": tokens,
        "seldon_python": seldon_python,
        **{key: getattr(version.settings, key) for key in _HARNESS_SETTINGS},
    }


def harness_files() -> Path:
    """Return the harness's own folder: data of the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_harness"
    return shipped if shipped.is_dir() else package.parent / "harness"


def install_harness(home: Home) -> str:
    """Copy the harness into the home under its content's hash, so that a version keeps its own for life."""
    files = sorted(p for p in harness_files().rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(harness_files())}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    name = digest.hexdigest()[:16]
    final = home.harnesses / name
    with home.lock(f"harness-{name}"):
        if not final.exists():
            beside = home.harnesses / f".{name}"
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(harness_files(), beside / HARNESS_PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
            beside.rename(final)
    return name
