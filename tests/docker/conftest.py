from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.docker import DockerDataPlane
from mlflow_domino.engine import Engine
from mlflow_domino.errors import DominoError
from mlflow_domino.home import Home
from mlflow_domino.store import SqliteRecords
from tests.conftest import free_port, processes_of
from tests.deployment import Deployment


class DockerDeployment(Deployment):
    """Verbs on the endpoints of a Docker data plane."""

    def __init__(self, home: Home, plane: DockerDataPlane) -> None:
        super().__init__(home)
        self.plane = plane

    @property
    def controller(self) -> Controller:
        return Controller(self.home, self.plane, SqliteRecords(self.home.database), self.said.append)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    engine = Engine()
    try:
        engine.check()
    except DominoError as error:
        pytest.skip(f"no container engine: {error}")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plane(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, shared_environments: Path
) -> Iterator[DockerDataPlane]:
    """A Docker data plane in a home of its own; nothing of it may be left afterwards."""
    home = Home(tmp_path_factory.mktemp("home"))
    home.ensure()
    home.environments.symlink_to(shared_environments)
    plane = DockerDataPlane(home, Declaration("docker", kind="docker", port=free_port()))
    yield plane
    Controller(home, plane, SqliteRecords(home.database), recover=False).down()
    left = plane._containers()
    assert not left, [c["Names"] for c in left]
    assert not processes_of(plane.home)
    plane.engine.close()


@pytest.fixture
def deployment(plane: DockerDataPlane) -> Iterator[DockerDeployment]:
    deployment = DockerDeployment(Home(plane.home.root), plane)
    yield deployment
    deployment.clean()
