"""Verbs on containers that are killed between two of their requests to the engine: the next command finishes or undoes them."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow_domino.data_planes.docker import DockerDataPlane
from mlflow_domino.engine import Engine
from mlflow_domino.holder import dead
from mlflow_domino.home import Home
from mlflow_domino.models import Status
from tests.deployment import ECHO, Deployment
from tests.interrupted import killed
from tests.load import Load

TARGET = "domino:/docker"


def containers(deployment: Deployment) -> list[str]:
    plane = deployment.controller.plane
    assert isinstance(plane, DockerDataPlane)
    return sorted(c["Names"][0].lstrip("/") for c in plane.containers())


def orphans(engine: Engine) -> list[str]:
    """Return the containers that served a command which has ended."""
    found = engine._api.containers(all=True, filters={"label": "mlflow-domino.holder"})
    return [c["Id"] for c in found if dead(c["Labels"]["mlflow-domino.holder"])]


def images(home: Home) -> set[str]:
    """Return the images that versions of the home have, or were about to have."""
    return {name for path in home.root.glob("versions/*/images.json") for name in json.loads(path.read_text())}


def test_a_create_that_is_killed_can_be_repeated_and_leaves_nothing_of_its_own(
    deployment: Deployment, home: Home, engine: Engine, tmp_path: Path
) -> None:
    project = deployment.project(tmp_path / "1", ECHO, VALUE=1)
    create = ("create", "cut", project, {"file": "model.py"})
    deployment._made.append("cut")
    assert killed(home, TARGET, "POST .*/containers/create", *create), "while it looks into the environment"
    for moment in ("POST .*/build", "POST .*/containers/create", "POST .*/containers/model-.*/start"):
        assert killed(home, TARGET, moment, *create), moment
        assert deployment.controller.endpoint("cut").pending == ""
        assert containers(deployment) == []
    view = deployment.create("cut", project)
    assert deployment.call(view, {"data": {}}).json()["result"] == 1
    assert not orphans(engine)
    made = images(home)
    assert made
    assert killed(home, TARGET, "DELETE .*/containers/", "delete", "cut")
    assert killed(home, TARGET, "DELETE .*/images/", "endpoints")
    assert not deployment.controller.endpoints()
    assert containers(deployment) == []
    assert not [name for name in made if engine.image(name)]


def test_what_serves_goes_on_whatever_is_killed_and_is_in_order_after_the_next_command(
    deployment: Deployment, home: Home, tmp_path: Path
) -> None:
    first, other = (deployment.project(tmp_path / str(n), ECHO, VALUE=n) for n in (1, 2))
    view = deployment.create("cut", first)
    update = ("update", "cut", other, {"file": "model.py"})
    load = Load(view.url, deployment.token, {"data": {}}, rate=50)
    with load.running():
        for moment, verb, wanted in [
            ("POST .*/build", update, 1),
            ("POST .*/containers/create", update, 1),
            ("DELETE .*/containers/", update, 4),
            ("POST .*/containers/model-.*/start", ("scale", "cut", 2), 4),
            ("POST .*/containers/model-.*/start", ("rollback", "cut"), 4),
        ]:
            assert killed(home, TARGET, moment, *verb), moment
            seen = deployment.controller.endpoint("cut")
            assert (seen.status, seen.pending) == (Status.RUNNING, ""), seen.reason
            assert seen.current is not None
            assert seen.current.version.number == wanted, moment
            assert containers(deployment) == [f"model-{seen.endpoint.latest}-0"]
    assert not load.failed, load.failures[:5]
    assert set(load.results) == {"1", "2"}
