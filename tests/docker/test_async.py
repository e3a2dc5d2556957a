"""Asynchronous endpoints on Docker, whole: the gateway of this machine, its dispatcher, and containers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from mlflow_domino.data_planes.docker import DockerDataPlane
from mlflow_domino.models import Status
from mlflow_domino.views import EndpointView
from tests.caller import MODEL, Caller, published_client, run_client
from tests.conftest import eventually
from tests.deployment import Deployment


@pytest.fixture
def made(deployment: Deployment, tmp_path: Path) -> EndpointView:
    return deployment.create("queued", project(deployment, tmp_path, 1), is_async=True, threads=2)


@pytest.fixture
def caller(made: EndpointView, deployment: Deployment) -> Caller:
    return Caller(made.url, deployment.token)


def project(deployment: Deployment, folder: Path, version: int) -> str:
    return deployment.project(folder / str(version), MODEL, VERSION=version)


def containers(deployment: Deployment) -> list[dict[str, Any]]:
    plane = deployment.controller.plane
    assert isinstance(plane, DockerDataPlane)
    found = [plane.engine.container(c["Names"][0].lstrip("/")) for c in plane.containers()]
    return [one for one in found if one is not None]


def test_dominos_published_client_gets_its_answer(made: EndpointView, deployment: Deployment, tmp_path: Path) -> None:
    ended = run_client(published_client(tmp_path, made, deployment.token, {"x": "value1", "param3": 3}))
    assert ended.returncode == 0, ended.stderr
    assert "prediction succeeded" in ended.stdout
    assert '"param3": 3' in ended.stdout


def test_dominos_published_client_is_told_of_a_failing_model(
    made: EndpointView, deployment: Deployment, tmp_path: Path
) -> None:
    ended = run_client(published_client(tmp_path, made, deployment.token, {"fail": "yes"}))
    assert ended.returncode == 0, ended.stderr
    assert "prediction failed, errors" in ended.stdout
    assert "secret" not in ended.stdout


def test_tokens_are_those_of_the_endpoint_from_the_moment_that_the_command_returns(
    made: EndpointView, deployment: Deployment
) -> None:
    def status(token: str) -> int:
        return requests.get(made.url, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code

    assert (status(deployment.token), status("x" * 64)) == (200, 401)
    _token, text = deployment.controller.create_token("queued", "second")
    assert status(text) == 200
    deployment.controller.revoke_token("queued", "second")
    assert status(text) == 401


def test_an_update_finishes_what_runs_on_the_old_version_and_runs_the_rest_on_the_new(
    caller: Caller, deployment: Deployment, tmp_path: Path
) -> None:
    ids = [caller.submit(x=n, s=5 if n < 2 else 0) for n in range(20)]
    caller.begun(ids[1])
    deployment.update("queued", project(deployment, tmp_path, 2))
    ids += [caller.submit(x=n) for n in range(20, 30)]
    found = [caller.poll(one, details=True) for one in ids if caller.ended(one)]
    assert [one["result"]["x"] for one in found] == list(range(30))
    assert [one["result"]["version"] for one in found[:2]] == [1, 1]
    assert {one["result"]["version"] for one in found[20:]} == {2}
    assert all(not one["attempts"] for one in found)


def test_work_that_takes_longer_than_the_drain_is_run_again_by_the_new_version(
    caller: Caller, deployment: Deployment, tmp_path: Path
) -> None:
    deployment.update("queued", drain_s=1)
    long = caller.submit(x=1, s=300)
    caller.begun(long)
    code = MODEL.replace("time.sleep(s)", "time.sleep(0)")
    deployment.update("queued", deployment.project(tmp_path / "2", code, VERSION=2))
    assert caller.ended(long)["result"]["version"] == 2  # the number that the project gives itself
    (lost,) = caller.poll(long, details=True)["attempts"]
    assert lost["version"] == 2


@pytest.mark.parametrize("which", ["everything", "seldon"])
def test_a_replica_that_is_killed_costs_no_prediction(caller: Caller, deployment: Deployment, which: str) -> None:
    ids = [caller.submit(x=n, s=0.2) for n in range(20)]
    eventually(lambda: caller.poll(ids[0])["status"] == "succeeded")
    for container in containers(deployment):
        kill(container, "" if which == "everything" else "seldon.py")
    ids += [caller.submit(x=n, s=0.2) for n in range(20, 40)]
    found = [caller.ended(one, within=120) for one in ids]
    assert [one["result"]["x"] for one in found] == list(range(40))
    eventually(lambda: deployment.controller.endpoint("queued").status is Status.RUNNING, within=60)


def kill(container: dict[str, Any], word: str) -> None:
    """Kill the processes of a container whose command line has a word, from outside."""
    first = psutil.Process(container["State"]["Pid"])
    family = [first, *first.children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in " ".join(process.cmdline()):
                process.kill()


def test_a_deleted_endpoint_takes_its_predictions_along(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create("passing", project(deployment, tmp_path, 1), is_async=True)
    caller = Caller(view.url, deployment.token)
    one = caller.submit(x=1)
    caller.ended(one)
    deployment.controller.delete("passing")
    assert caller.poll(one)["status"] == 404
