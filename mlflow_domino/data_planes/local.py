"""The local data plane: replicas under uWSGI's Emperor, Envoy in front, environments made by uv."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_domino import logs, secret, source
from mlflow_domino.config import Secrets
from mlflow_domino.data_planes import replica
from mlflow_domino.data_planes.base import DataPlane, Log, Observation, World
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.gateway import LocalGateway
from mlflow_domino.data_planes.supervisor import Launch, Supervisor, clean_environment, wait_until
from mlflow_domino.errors import Failed, Unavailable
from mlflow_domino.home import Home, write_json, write_text
from mlflow_domino.models import Artifact, Endpoint, Status, Target, Token, Version

if TYPE_CHECKING:
    from mlflow_domino.environment import Environments

__all__ = ["LocalDataPlane"]

_TAIL_LINES = 30
_ACKNOWLEDGE_S = 10.0
_HARNESS_PACKAGE = "_mlflow_domino_harness"


class LocalDataPlane(DataPlane):
    """Runs versions on this machine, for one user, without root, Docker or a cluster."""

    def __init__(self, home: Home, declaration: Declaration) -> None:
        self.name = declaration.name
        self._home = home
        self._declaration = declaration
        self._supervisor = Supervisor(home)
        self._gateway = LocalGateway(home, declaration)

    @functools.cached_property
    def _environments(self) -> Environments:
        from mlflow_domino.environment import Environments  # here: most verbs build nothing, and start sooner without

        return Environments(self._home)

    def url(self) -> str:
        return self._declaration.base_url

    def up(self, world: World) -> bool:
        with self._home.lock("supervisor"):
            if self._supervisor.alive():
                return False
            self._gateway.check_port()
            self._clear()
            self._gateway.prepare(world)
            self._supervisor.put("gateway", self._gateway.launch())
            running = {v.endpoint_id: [] for v in world.versions}  # type: dict[str, list[Version]]
            for version in world.versions:
                if version.target is Target.RUNNING:
                    running[version.endpoint_id].append(version)
            for endpoint in world.endpoints:
                for version in running.get(endpoint.id, ()):
                    self.start(endpoint, version)
            self._supervisor.start(self._gateway.envoy_argv())
            self._gateway.await_ready()
            return True

    def down(self) -> None:
        with self._home.lock("supervisor"):
            self._supervisor.stop()
            self._clear()

    def _clear(self) -> None:
        """Forget sockets and vassals of a supervisor that is gone: what is to run is put there anew."""
        for folder in ("s", "vassals", "launch"):
            path = self._home.run / folder
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(mode=0o700, parents=True)

    def alive(self) -> bool:
        return self._supervisor.alive()

    def render(self, world: World, endpoint: Endpoint, version: Version, secrets: Secrets) -> dict[str, str]:
        documents: dict[str, Any] = {"harness.json": self._harness_settings(endpoint, version)}
        for number in range(version.replicas):
            documents[f"replica-{number}.json"] = vars(self._launch(version, number, secrets.variables))
        files = {name: json.dumps(document, indent=1) + "\n" for name, document in documents.items()}
        return {**files, **self._gateway.render(world)}

    def build(self, version: Version, secrets: Secrets, log: Log) -> Artifact:
        folder = self._home.version(version.id)
        model = _model(version, folder)
        with logs.written(folder / "build.log", _without_packages(log), secrets.variables.values()) as both:
            built = self._environments.build(model, version.settings, secrets, both)
        write_text(folder / "requirements.lock", built.lock_text)
        return Artifact(
            environment=built.environment,
            lock=hashlib.sha256(built.lock_text.encode()).hexdigest(),
            harness=_install_harness(self._home),
            python_version=built.python_version,
            notes=tuple(built.notes),
        )

    def start(self, endpoint: Endpoint, version: Version) -> None:
        wanted = [_vassal(version.id, n) for n in range(version.replicas)]
        running = set(self._supervisor.names())
        surplus = [name for name in running if name.startswith(version.id) and name not in wanted]
        missing = [n for n, name in enumerate(wanted) if name not in running]
        if missing:
            self._ensure_environment(version)
            write_json(self._home.version(version.id) / "harness.json", self._harness_settings(endpoint, version))
        variables = secret.load(self._home.version(version.id) / "secrets.json").variables
        for number in missing:
            folder = self._replica(version, number)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True)
            self._supervisor.put(wanted[number], self._launch(version, number, variables))
        self._end(surplus)

    def stop(self, version: Version) -> None:
        self._end([name for name in self._supervisor.names() if name.startswith(version.id)])
        shutil.rmtree(self._home.version(version.id) / "replicas", ignore_errors=True)

    def discard(self, version: Version) -> None:
        source.remove(self._home.version(version.id))

    def forget(self, endpoint: Endpoint) -> None:
        shutil.rmtree(self._home.endpoint(endpoint.id), ignore_errors=True)
        self._home.caller_token(endpoint.id).unlink(missing_ok=True)
        (self._home.root / "locks" / f"tokens-{endpoint.id}").unlink(missing_ok=True)

    def observe(self, versions: Sequence[Version]) -> list[Observation]:
        alive = self._supervisor.alive() if any(v.target is Target.RUNNING for v in versions) else False
        return [self._observe(version, alive) for version in versions]

    def publish(self, world: World) -> None:
        if self._supervisor.alive():
            self._gateway.publish(world)

    def drain(self, version: Version, timeout_s: float, *, replicas: Sequence[int] | None = None) -> bool:
        folders = [self._replica(version, n) for n in (range(version.replicas) if replicas is None else replicas)]

        def idle() -> bool:
            if replicas is None and self._gateway.active(version.id):
                return False
            return not any(map(replica.in_flight, folders))

        return not self._supervisor.alive() or wait_until(idle, timeout_s, every_s=0.01)

    def put_tokens(self, endpoint: Endpoint, tokens: Sequence[Token], versions: Sequence[Version]) -> None:
        path = self._home.tokens(endpoint.id) / "tokens.json"
        own = secret.digest(self._own_token(endpoint))
        write_json(
            path, {"tokens": [{"id": t.id, "sha256": t.sha256} for t in tokens] + [{"id": "gateway", "sha256": own}]}
        )
        content = path.read_bytes()
        ready = [
            (self._replica(v, n), v.settings.workers)
            for v in versions
            if v.target is Target.RUNNING
            for n in range(v.replicas)
            if self._state(v, n).state == "ready"
        ]
        if not wait_until(lambda: all(replica.acknowledged(f, content, w) for f, w in ready), _ACKNOWLEDGE_S):
            raise Unavailable(
                f"Not every replica of {endpoint.name!r} took the change of tokens within {_ACKNOWLEDGE_S:g} s; each "
                "takes it with its next request. `mlflow-domino status` shows what they do."
            )

    def logs(self, version: Version, *, build: bool = False, replica: int | None = None) -> list[Path]:
        folder = self._home.version(version.id)
        if build:
            return [folder / "build.log"]
        found = sorted((folder / "logs").glob("replica-*.log"), key=lambda p: int(p.stem.split("-")[1]))
        return [p for p in found if replica in (None, int(p.stem.split("-")[1]))]

    def _observe(self, version: Version, alive: bool) -> Observation:
        if version.target is not Target.RUNNING:
            return Observation(Status.STOPPED)
        if not alive:
            return Observation(Status.UNREACHABLE, "the supervisor does not run; `mlflow-domino up` starts it")
        states = [self._state(version, n) for n in range(version.replicas)]
        seen = replica.summary(version, states)
        if seen.status is Status.RUNNING and not seen.failed:
            return seen
        guilty = next((s for s in states if s.state == "failed"), next(s for s in states if s.state != "ready"))
        return Observation(seen.status, seen.reason, seen.ready, seen.failed, self._tail(version, guilty))

    def _tail(self, version: Version, state: replica.ReplicaState) -> str:
        values = secret.load(self._home.version(version.id) / "secrets.json").variables.values()
        paths = self.logs(version, replica=state.number)
        return logs.tail(paths[0], _TAIL_LINES, values=values) if paths else ""

    def _state(self, version: Version, number: int) -> replica.ReplicaState:
        return replica.read(number, self._replica(version, number), self._gateway.address(version.id, number))

    def _replica(self, version: Version, number: int) -> Path:
        return self._home.version(version.id) / "replicas" / str(number)

    def _end(self, names: Sequence[str]) -> None:
        self._supervisor.remove(names)
        for name in names:
            for path in (self._home.run / "s").glob(f"{name}*"):
                path.unlink(missing_ok=True)

    def _own_token(self, endpoint: Endpoint) -> str:
        """Return the gateway's own token for the endpoint, made when it is first needed."""
        path = self._home.gateway_token(endpoint.id)
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        token = secret.new_token()
        write_text(path, token)
        return token

    def _ensure_environment(self, version: Version) -> None:
        """Install the version's lock again where somebody removed its environment."""
        folder = self._home.version(version.id)
        if version.artifact is None:
            raise Failed(f"Version {version.number} was never built.")
        if not self._environments.has(version.artifact.environment):
            self._environments.rebuild(
                (folder / "requirements.lock").read_text("utf-8"),
                version.settings,
                secret.load(folder / "secrets.json"),
                _silent,
                model=_model(version, folder),
            )
        (folder / "logs").mkdir(mode=0o700, exist_ok=True)

    def _launch(self, version: Version, number: int, variables: Mapping[str, str]) -> Launch:
        folder = self._home.version(version.id)
        made = version.artifact
        environment = self._home.environments / (made.environment if made else "HASH-OF-THE-LOCK")
        launcher = (
            self._home.harnesses / (made.harness if made else "HASH-OF-THE-HARNESS") / _HARNESS_PACKAGE / "launch.py"
        )
        working = source.folder_of(version.source, folder)
        return Launch(
            argv=(str(environment / "bin" / "python"), "-I", str(launcher)),
            environment={
                **clean_environment(),
                "PATH": f"{environment / 'bin'}:{clean_environment()['PATH']}",
                "DOMINO_HARNESS_CONFIG": str(folder / "harness.json"),
                "DOMINO_REPLICA_DIR": str(self._replica(version, number)),
                "DOMINO_SOCKET": str(self._gateway.address(version.id, number)),
                "DOMINO_WORKING_DIR": str(working),
                "DOMINO_VARIABLES": ",".join(variables),
            },
            directory=str(working),
            log=str(folder / "logs" / f"replica-{number}.log"),
            secrets=str(folder / "secrets.json"),
            replica=str(self._replica(version, number)),
        )

    def _harness_settings(self, endpoint: Endpoint, version: Version) -> dict[str, Any]:
        folder = self._home.version(version.id)
        place: dict[str, Any] = {"kind": version.source.kind, "path": str(source.folder_of(version.source, folder))}
        if version.source.kind == "Registry":
            place.update(name=getattr(version.source, "name", None), version=getattr(version.source, "version", None))
        else:
            place.update(file=getattr(version.source, "file", ""), function=getattr(version.source, "function", ""))
        settings = version.settings
        return {
            "endpoint_id": endpoint.id,
            "endpoint_name": endpoint.name,
            "version_id": version.id,
            "version_number": version.number,
            "source": place,
            "tokens": str(self._home.tokens(endpoint.id)),
            **{key: getattr(settings, key) for key in _HARNESS_SETTINGS},
        }


_HARNESS_SETTINGS = (
    "workers", "threads", "max_queue", "worker_max_requests", "worker_max_memory", "request_timeout_s", "max_body",
    "drain_s", "start_timeout_s", "strict_schema", "debug", "log_http_request_response", "warmup_file",
)  # fmt: skip


def _silent(_line: str) -> None:
    pass


def _model(version: Version, folder: Path) -> Path | None:
    return source.folder_of(version.source, folder) if version.source.kind == "Registry" else None


def _without_packages(log: Log) -> Log:
    """Leave out each package that uv installs: a hundred lines that nobody waits for."""
    return lambda line: None if line.startswith(" + ") else log(line)


def _vassal(version_id: str, number: int) -> str:
    return f"{version_id}-{number}"


def _harness_files() -> Path:
    """Return the harness's own folder: data of the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_harness"
    return shipped if shipped.is_dir() else package.parent / "harness"


def _install_harness(home: Home) -> str:
    """Copy the harness into the home under its content's hash, so that a version keeps its own for life."""
    files = sorted(p for p in _harness_files().rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(_harness_files())}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    name = digest.hexdigest()[:16]
    final = home.harnesses / name
    with home.lock(f"harness-{name}"):
        if not final.exists():
            beside = home.harnesses / f".{name}"
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(_harness_files(), beside / _HARNESS_PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
            beside.rename(final)
    return name
