"""The local data plane: replicas under uWSGI's Emperor, Envoy in front, environments made by uv."""

from __future__ import annotations

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
from mlflow_domino.data_planes.base import Log, World
from mlflow_domino.data_planes.machine import HARNESS_PACKAGE, MachineDataPlane, harness_settings, install_harness
from mlflow_domino.data_planes.supervisor import Launch, clean_environment
from mlflow_domino.data_planes.tier import unenforced
from mlflow_domino.errors import Failed
from mlflow_domino.home import write_json, write_text
from mlflow_domino.models import Artifact, Endpoint, Version

if TYPE_CHECKING:
    from mlflow_domino.environment import Built, Environments

__all__ = ["LocalDataPlane"]

#: What the harness appends to the path of its own socket.
_SELDON_SOCKET = ".seldon"
#: Of asynchronous replicas: somebody waits for what the others do, and for a prediction to be accepted.
_NICENESS = 10


class LocalDataPlane(MachineDataPlane):
    """Runs versions on this machine, for one user, without root, Docker or a cluster."""

    @functools.cached_property
    def _environments(self) -> Environments:
        from mlflow_domino.environment import Environments  # here: most verbs build nothing, and start sooner without

        return Environments(self.home)

    def addresses(self, version: Version) -> tuple[str, ...]:
        return tuple(str(self._socket(version, n)) for n in range(version.replicas))

    def message_addresses(self, version: Version) -> tuple[str, ...]:
        return tuple(f"{address}{_SELDON_SOCKET}" for address in self.addresses(version))

    def state(self, version: Version, number: int) -> replica.ReplicaState:
        own = self._socket(version, number)
        sockets = [own, Path(f"{own}{_SELDON_SOCKET}")] if version.settings.is_async else [own]
        seen = replica.read(number, self.replica_folder(version, number), sockets)
        if seen.state == "failed" and seen.pid and _vassal(version.id, number) not in self.supervisor.names():
            return replica.ReplicaState(number, "lost", "somebody ended it")  # and uWSGI with it, before it had loaded
        return seen

    def render(self, world: World, endpoint: Endpoint, version: Version, secrets: Secrets) -> dict[str, str]:
        documents: dict[str, Any] = {"harness.json": self._harness_settings(endpoint, version)}
        for number in range(version.replicas):
            documents[f"replica-{number}.json"] = vars(self._launch(version, number, secrets.variables))
        files = {name: json.dumps(document, indent=1) + "\n" for name, document in documents.items()}
        return {**files, **self.gateway.render(world, self.addresses)}

    def build(self, version: Version, secrets: Secrets, log: Log) -> Artifact:
        folder = self.home.version(version.id)
        model = _model(version, folder)
        with logs.written(folder / "build.log", _without_packages(log), secrets.variables.values()) as both:
            built = self._environments.build(model, version.settings, secrets, both)
            seldon = self._build_seldon(version, built, secrets, both)
        write_text(folder / "requirements.lock", built.lock_text)
        return Artifact(
            environment=built.environment,
            lock=hashlib.sha256(built.lock_text.encode()).hexdigest(),
            harness=install_harness(self.home),
            python_version=built.python_version,
            notes=(*built.notes, *unenforced(version.settings, self.home, self.declaration)),
            seldon=seldon,
        )

    def start(self, endpoint: Endpoint, version: Version) -> None:
        wanted = [_vassal(version.id, n) for n in range(version.replicas)]
        running = set(self.supervisor.names())
        surplus = [name for name in running if name.startswith(version.id) and name not in wanted]
        missing = [n for n, name in enumerate(wanted) if name not in running]
        if missing:
            self._ensure_environment(version)
            write_json(self.home.version(version.id) / "harness.json", self._harness_settings(endpoint, version))
        variables = secret.load(self.home.version(version.id) / "secrets.json").variables
        for number in missing:
            folder = self.replica_folder(version, number)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True)
            self.supervisor.put(wanted[number], self._launch(version, number, variables))
        self._end(surplus)

    def stop(self, version: Version) -> None:
        self._end([name for name in self.supervisor.names() if name.startswith(version.id)])
        shutil.rmtree(self.home.version(version.id) / "replicas", ignore_errors=True)

    def _socket(self, version: Version, number: int) -> Path:
        return self.home.run / "s" / _vassal(version.id, number)

    def _end(self, names: Sequence[str]) -> None:
        self.supervisor.remove(names)
        for name in names:
            for path in (self.home.run / "s").glob(f"{name}*"):
                path.unlink(missing_ok=True)

    def _ensure_environment(self, version: Version) -> None:
        """Install the version's lock again where somebody removed its environment."""
        folder = self.home.version(version.id)
        if version.artifact is None:
            raise Failed(f"Version {version.number} was never built.")
        secrets = secret.load(folder / "secrets.json")
        if not self._environments.has(version.artifact.environment):
            lock = (folder / "requirements.lock").read_text("utf-8")
            self._environments.rebuild(lock, version.settings, secrets, _silent, model=_model(version, folder))
        if version.artifact.seldon and not self._environments.has(version.artifact.seldon):
            from mlflow_domino import seldon

            lock = (folder / seldon.LOCK).read_text("utf-8")
            self._environments.rebuild(lock, seldon.settings_of(version.settings), secrets, _silent)
        (folder / "logs").mkdir(mode=0o700, exist_ok=True)

    def _build_seldon(self, version: Version, built: Built, secrets: Secrets, log: Log) -> str:
        """Return the environment with seldon-core, which is the version's own where its owner keeps that as it is."""
        if not version.settings.is_async:
            return ""
        if not version.settings.install_harness_packages:
            return built.environment
        from mlflow_domino import seldon

        beside = seldon.build(self._environments, version.settings, secrets, log)
        write_text(self.home.version(version.id) / seldon.LOCK, beside.lock_text)
        return beside.environment

    def _launch(self, version: Version, number: int, variables: Mapping[str, str]) -> Launch:
        folder = self.home.version(version.id)
        made = version.artifact
        environment = self.home.environments / (made.environment if made else "HASH-OF-THE-LOCK")
        launcher = (
            self.home.harnesses / (made.harness if made else "HASH-OF-THE-HARNESS") / HARNESS_PACKAGE / "launch.py"
        )
        working = source.folder_of(version.source, folder)
        return Launch(
            argv=(str(environment / "bin" / "python"), "-I", str(launcher)),
            environment={
                **clean_environment(),
                "PATH": f"{environment / 'bin'}:{clean_environment()['PATH']}",
                "DOMINO_HARNESS_CONFIG": str(folder / "harness.json"),
                "DOMINO_REPLICA_DIR": str(self.replica_folder(version, number)),
                "DOMINO_SOCKET": str(self._socket(version, number)),
                "DOMINO_WORKING_DIR": str(working),
                "DOMINO_VARIABLES": ",".join(variables),
            },
            directory=str(working),
            log=str(folder / "logs" / f"replica-{number}.log"),
            secrets=str(folder / "secrets.json"),
            replica=str(self.replica_folder(version, number)),
            niceness=_NICENESS if version.settings.is_async else 0,
        )

    def _harness_settings(self, endpoint: Endpoint, version: Version) -> dict[str, Any]:
        path = source.folder_of(version.source, self.home.version(version.id))
        made = version.artifact
        beside = made.seldon if made else "HASH-OF-THE-LOCK"
        python = str(self.home.environments / beside / "bin" / "python") if version.settings.is_async else ""
        return harness_settings(
            endpoint, version, path=str(path), tokens=str(self.home.tokens(endpoint.id)), seldon_python=python
        )


def _silent(_line: str) -> None:
    pass


def _model(version: Version, folder: Path) -> Path | None:
    return source.folder_of(version.source, folder) if version.source.kind == "Registry" else None


def _without_packages(log: Log) -> Log:
    """Leave out each package that uv installs: a hundred lines that nobody waits for."""
    return lambda line: None if line.startswith(" + ") else log(line)


def _vassal(version_id: str, number: int) -> str:
    return f"{version_id}-{number}"
