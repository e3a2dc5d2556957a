"""What verbs leave in the records, when they work and when they do not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import requests

from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.local import LocalDataPlane
from mlflow_domino.errors import (
    EnvironmentFailed,
    Failed,
    GatewayFailed,
    InvalidInput,
    StartFailed,
    Unavailable,
    Unreachable,
)
from mlflow_domino.home import Home
from mlflow_domino.models import Endpoint, Operation, Status, Version
from tests.conftest import eventually, free_port
from tests.deployment import ECHO, Deployment

WHO = """
import os
def predict():
    return os.environ.get("WHO")
"""
#: Loads once; the second replica does not.
ONCE = """
import os
os.open(MARK, os.O_CREAT | os.O_EXCL)
def predict():
    return 1
"""


def test_an_endpoint_is_deleted_by_its_id_too(deployment: Deployment) -> None:
    made = deployment.controller.create_endpoint("by-id")
    deployment.controller.delete(made.id)
    assert "by-id" not in {v.endpoint.name for v in deployment.controller.endpoints()}


def test_a_rollback_brings_variables_back_with_the_other_settings(deployment: Deployment, tmp_path: Path) -> None:
    project = deployment.project(tmp_path / "p", WHO)
    view = deployment.create("who", project, **{"env.WHO": "first"})
    deployment.update("who", project, **{"env.WHO": "second"})
    deployment.controller.rollback("who")
    deployment.update("who", description="the same again")
    assert deployment.call(view, {"data": {}}).json()["result"] == "first"


def test_a_create_that_fails_before_there_is_a_version_leaves_no_settings_for_the_next_one(
    deployment: Deployment, tmp_path: Path
) -> None:
    with pytest.raises(Failed, match="cannot be fetched"):
        deployment.create("late", f"git+file://{tmp_path}/none.git", file="model.py", workers=2)
    assert "late" not in {v.endpoint.name for v in deployment.controller.endpoints()}
    view = deployment.create("late", deployment.project(tmp_path / "p", ECHO, VALUE=1))
    assert view.endpoint.settings.workers == 1


@pytest.mark.parametrize(
    ("error", "listed"),
    [(Unreachable("It does not answer."), True), (OSError("disk full"), True), (Unavailable("One is slow."), False)],
    ids=["unreachable", "disk full", "on its way"],
)
def test_a_token_whose_end_was_not_written_is_listed_still(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, listed: bool
) -> None:
    view = deployment.create("closing", deployment.project(tmp_path / "p", ECHO, VALUE=1))
    deployment.controller.create_token("closing", "second")

    def put_tokens(*_arguments: object) -> None:
        raise error

    with monkeypatch.context() as patched, pytest.raises(type(error)):
        patched.setattr(LocalDataPlane, "put_tokens", put_tokens)
        deployment.controller.revoke_token("closing", "second")
    assert ("second" in {t.name for t in deployment.controller.tokens("closing")}) == listed
    assert deployment.call(view, {"data": {}}).status_code == 200


def test_a_rollback_to_what_was_pruned_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    project = deployment.project(tmp_path / "p", ECHO, VALUE=1)
    deployment.create("kept", project)
    deployment.update("kept", project, keep_versions=1)
    deployment.controller.records.remove_version(deployment.controller.endpoint("kept").endpoint.previous or "")
    with pytest.raises(InvalidInput, match="no earlier version"):
        deployment.controller.rollback("kept")


def test_replicas_that_do_not_start_change_neither_records_nor_routes(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create("once", deployment.project(tmp_path / "p", ONCE, MARK=str(tmp_path / "mark")))
    with pytest.raises(StartFailed, match="2 replicas"):
        deployment.controller.scale("once", 2)
    seen = deployment.controller.endpoint("once")
    assert seen.endpoint.settings.replicas == seen.current.version.replicas == seen.current.seen.ready == 1
    assert deployment.call(view, {"data": {}}).status_code == 200


def test_what_cannot_be_put_in_order_is_tried_again_and_keeps_nobody_from_looking(
    deployment: Deployment, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = deployment.project(tmp_path / "p", ECHO, VALUE=1)
    deployment.create("stuck", project)
    with monkeypatch.context() as broken:

        def refuse(*_: object) -> None:
            raise GatewayFailed("no gateway today")

        broken.setattr(LocalDataPlane, "publish", refuse)
        with pytest.raises(GatewayFailed):
            deployment.update("stuck", project)
        deployment.said.clear()
        assert deployment.controller.endpoint("stuck").pending == "update"
        assert "cannot be put in order yet: no gateway today" in deployment.said[0]
    deployment.said.clear()
    assert deployment.controller.endpoint("stuck").pending == ""
    assert "put in order, latest is version 2" in deployment.said[0]


def test_a_port_that_is_taken_keeps_nobody_from_looking(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        home.config.write_text(f"[data_planes.local]\nport = {taken.getsockname()[1]}\n")
        controller = Controller.open(home=home)
        made = controller.create_endpoint("waits")
        controller.records.save_operation(Operation(made.id, "update", "begun", 1, 0))
        said: list[str] = []
        assert [v.endpoint.name for v in Controller.open(home=home, say=said.append).endpoints()] == ["waits"]
        assert "the port is taken" in said[0]


def test_a_gateway_is_shown_where_it_listens_until_it_is_started_again_where_it_should(tmp_path: Path) -> None:
    home, first, second = Home(tmp_path), free_port(), free_port()
    home.config.write_text(f"[data_planes.local]\nport = {first}\n")
    Controller.open(home=home).up()
    try:
        home.config.write_text(f"[data_planes.local]\nport = {second}\n")
        plane = Controller.open(home=home).plane
        assert plane.url() == f"http://127.0.0.1:{first}"
        assert f"moves it to port {second} of 127.0.0.1, without TLS" in plane.remark()
        assert requests.get(f"{plane.url()}/models/none/latest/model", timeout=5).status_code == 404
        Controller.open(home=home).down()
        Controller.open(home=home).up()
        plane = Controller.open(home=home).plane
        assert (plane.url(), plane.remark()) == (f"http://127.0.0.1:{second}", "")
    finally:
        Controller.open(home=home).down()


def test_a_version_that_cannot_be_started_again_keeps_no_other_down(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = deployment.create("bad", deployment.project(tmp_path / "b", ECHO, VALUE=2))
    its = deployment.token
    good = deployment.create("good", deployment.project(tmp_path / "g", ECHO, VALUE=1))
    deployment.controller.down()
    real = LocalDataPlane.start

    def start(self: LocalDataPlane, endpoint: Endpoint, version: Version) -> None:
        if endpoint.name == "bad":
            raise EnvironmentFailed("The packages of the lock cannot be installed.")
        real(self, endpoint, version)

    with monkeypatch.context() as broken:
        broken.setattr(LocalDataPlane, "start", start)
        deployment.controller.up()
    eventually(lambda: deployment.controller.endpoint("good").status is Status.RUNNING)
    assert deployment.call(good, {"data": {}}).status_code == 200
    seen = deployment.controller.endpoint("bad")
    assert (seen.status, seen.reason) == (Status.FAILED, "The packages of the lock cannot be installed.")
    deployment.controller.start("bad")
    assert deployment.call(bad, {"data": {}}, auth=(its, its)).status_code == 200
