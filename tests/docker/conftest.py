from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.docker import DockerDataPlane
from mlflow_domino.engine import Engine
from mlflow_domino.errors import DominoError
from mlflow_domino.home import Home
from tests.conftest import eventually, free_port, processes_of
from tests.deployment import Deployment


@pytest.fixture(scope="session")
def engine() -> Engine:
    engine = Engine()
    try:
        engine.check()
    except DominoError as error:
        pytest.skip(f"no container engine: {error}")
    return engine


@pytest.fixture(scope="module")
def home(engine: Engine, tmp_path_factory: pytest.TempPathFactory, shared_environments: Path) -> Iterator[Home]:
    """A home with a Docker data plane on a free port; nothing of it may be left afterwards."""
    home = Home(tmp_path_factory.mktemp("home"))
    (home.root / "config.toml").write_text(f"[data_planes.docker]\nport = {free_port()}\n")
    home.environments.symlink_to(shared_environments)
    yield home
    controller = Controller.open("domino:/docker", home=home, recover=False)
    controller.down()
    assert isinstance(controller.plane, DockerDataPlane)
    assert not controller.plane.containers()
    eventually(lambda: not processes_of(controller.plane.home))


@pytest.fixture
def deployment(home: Home) -> Iterator[Deployment]:
    deployment = Deployment(home, "domino:/docker")
    yield deployment
    deployment.clean()


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody at the engine's socket, where Docker's client leaves one unclosed."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()
