from __future__ import annotations

from collections.abc import Callable

import pytest

from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.docker import DockerDataPlane
from mlflow_domino.engine import Engine
from mlflow_domino.home import Home
from tests.contract import DataPlaneContract, ImagesOf, Things, files_of


@pytest.fixture
def things(home: Home, engine: Engine) -> Callable[[], Things]:
    plane = Controller.open("domino:/docker", home=home, recover=False).plane
    assert isinstance(plane, DockerDataPlane)
    images = ImagesOf(home, engine)
    return lambda: {
        "containers": {container["Id"] for container in plane.containers()},
        "images": images(),
        "files": files_of(home) | {path.name for path in plane.home.run.glob("sockets/*")},
    }


class TestDockerDataPlane(DataPlaneContract):
    pass
