"""Verbs on a cluster that are killed between two of their writes: the next command, whoever's, finishes or undoes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.cluster import Cluster
from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.kubernetes import KubernetesDataPlane
from mlflow_domino.errors import NotFound
from mlflow_domino.home import Home
from mlflow_domino.labels import ENDPOINT, GATEWAY_TOKENS, KIND, MANAGED, VERSION, model_name
from mlflow_domino.models import Status, Target
from tests.conftest import eventually
from tests.deployment import ECHO, Deployment
from tests.interrupted import killed
from tests.kubernetes.conftest import a_namespace, objects_of
from tests.kubernetes.people import People, at
from tests.load import Load

TARGET = "domino:/kube"
_OF_ENDPOINTS = ("ConfigMap", "Secret", "Lease", "Deployment", "Service", "PodDisruptionBudget")
_OF_VERSIONS = ("model", "variables")
_PASSING = ("lock", "operation")


@pytest.fixture(scope="module")
def context() -> str:
    """One cluster is enough: what differs between two is where they are."""
    return "local"


@pytest.fixture
def theirs(people: People, namespace: Cluster) -> Home:
    """Somebody else's home, with the same namespace."""
    return people.home(kube=at(namespace))


def opened(home: Home) -> Controller:
    """Return what any command begins with."""
    return Controller.open(TARGET, home=home)


def astray(namespace: Cluster, controller: Controller) -> list[str]:
    """Return the objects of endpoints that no record explains, and what is not there that records want."""
    ids = {e.id for e in controller.records.endpoints()}
    versions = {v.id: v for v in controller.records.versions()}
    running = {v.id: v for v in versions.values() if v.target is Target.RUNNING}
    found = []
    for kind in _OF_ENDPOINTS:
        for one in namespace.list(kind, MANAGED):
            own = one["metadata"]["labels"]
            lost = own.get(ENDPOINT) not in {None, *ids} or own.get(VERSION) not in {None, *versions}
            idle = own[KIND] in _OF_VERSIONS and own[VERSION] not in running
            if own[KIND] == "name" and one["data"]["state"] == "reserved":
                continue  # it has a while to get its endpoint
            if lost or idle or own[KIND] in _PASSING:
                found.append(f"{kind} {one['metadata']['name']}")
    for version in running.values():
        deployment = namespace.get("Deployment", model_name(version.id)) or {"spec": {}}
        if deployment["spec"].get("replicas") != version.replicas:
            found.append(f"{deployment['spec'].get('replicas')} replicas of version {version.number}")
        if (namespace.get("PodDisruptionBudget", model_name(version.id)) is not None) != (version.replicas > 1):
            found.append(f"PodDisruptionBudget of version {version.number}")
    held = (namespace.get("Secret", GATEWAY_TOKENS) or {}).get("data") or {}
    return [*found, *(f"token of {key}" for key in held if key.partition(".")[0] not in ids)]


def in_order(controller: Controller, namespace: Cluster) -> int:
    """See that the endpoint `cut` serves, and that nothing else is there; return the number of the version that does."""
    view = controller.endpoint("cut")
    assert (view.status, view.pending) == (Status.RUNNING, ""), view.reason
    others = [v.version for v in view.versions if v.version.id != view.endpoint.latest]
    assert {v.target for v in others} <= {Target.STOPPED}
    assert {v.status for v in others} <= {Status.STOPPED, Status.FAILED, Status.READY_TO_RUN}
    assert not astray(namespace, controller)
    assert view.current is not None
    assert view.current.version.replicas == view.endpoint.settings.replicas
    return view.current.version.number


def test_what_serves_goes_on_whatever_is_killed_and_the_next_command_of_anybody_puts_it_in_order(
    deployment: Deployment, plane_home: Home, theirs: Home, namespace: Cluster, tmp_path: Path
) -> None:
    greets = "import os\ndef predict():\n    return [VALUE, os.environ.get('GREETING')]\n"
    first, other = (deployment.project(tmp_path / str(n), greets, VALUE=n) for n in (1, 2))
    view = deployment.create("cut", first, **{"env.GREETING": "hello"})
    update = ("update", "cut", other, {"file": "model.py", "env.GREETING": "good day"})
    load = Load(view.url, deployment.token, {"data": {}}, rate=50)
    with load.running():
        for who, moment, verb, wanted in [
            (theirs, "POST .*/services", update, 1),
            (plane_home, "PATCH .*/deployments", ("scale", "cut", 2), 1),
            (theirs, "DELETE .*/deployments", update, 3),
            (plane_home, "POST .*/deployments", ("rollback", "cut"), 3),
        ]:
            assert killed(plane_home, TARGET, moment, *verb)
            assert in_order(opened(who), namespace) == wanted, moment
        # Killed just before or after the one write that decides, an update's variables go with its version.
        assert killed(plane_home, TARGET, "PUT .*/version-", *update[:3], {**update[3], "env.GREETING": "no"}, nth=4)
        assert in_order(opened(plane_home), namespace) == 3
        deployment.update("cut", workers=2)
    assert not load.failed, load.failures[:5]
    assert set(load.results) == {'[1, "hello"]', '[2, "good day"]'}
    assert deployment.call(view, {"data": {}}).json()["result"] == [2, "good day"]


def test_a_create_that_is_killed_can_be_repeated_tokens_too_and_a_delete_is_finished_by_whoever_comes_next(
    deployment: Deployment, plane_home: Home, theirs: Home, namespace: Cluster, tmp_path: Path
) -> None:
    project = deployment.project(tmp_path / "1", ECHO, VALUE=1)
    create = ("create", "cut", project, {"file": "model.py", "env.A": "b"})
    deployment._made.append("cut")
    for who, moment in ((plane_home, "POST .*/configmaps"), (theirs, "PATCH .*/secrets"), (theirs, "POST .*/services")):
        assert killed(plane_home, TARGET, moment, *create)
        assert not astray(namespace, opened(who)), moment
    view = deployment.create("cut", project)
    assert deployment.call(view, {"data": {}}).json()["result"] == 1

    for moment in ("POST .*/leases", "PATCH .*/secrets", "PATCH .*/pods"):
        assert killed(plane_home, TARGET, moment, "create_token", "cut", "second")
        assert [t.name for t in opened(theirs).tokens("cut")] == ["default"]
        assert in_order(opened(plane_home), namespace)
    _token, text = opened(theirs).create_token("cut", "second")
    for valid in (text, deployment.token):
        assert deployment.call(view, {"data": {}}, auth=(valid, valid)).ok

    assert killed(plane_home, TARGET, "DELETE .*/deployments", "delete", "cut")
    for moment in ("DELETE .*/secrets/endpoint-", "DELETE .*/configmaps/endpoint-", "DELETE .*/configmaps/operation-"):
        assert killed(plane_home, TARGET, moment, "endpoints"), moment
    controller = opened(theirs)
    assert not controller.endpoints()
    assert not astray(namespace, controller)
    with pytest.raises(NotFound):
        controller.endpoint("cut")
    eventually(lambda: deployment.call(view, {"data": {}}).status_code == 404, within=30)


@pytest.fixture
def empty() -> Iterator[Cluster]:
    """A namespace without a gateway."""
    with a_namespace("local") as inside:
        yield inside


def test_a_gateway_whose_installation_is_killed_is_whole_after_the_next_one_and_goes_whole(
    empty: Cluster, people: People
) -> None:
    home = people.home(kube=at(empty))
    before = objects_of(empty)
    for moment in ("POST .*/roles$", "POST .*/services$", "POST .*/deployments$"):
        assert killed(home, TARGET, moment, "install")
    controller = opened(home)
    assert isinstance(controller.plane, KubernetesDataPlane)
    entrance = controller.plane.entrance
    entrance.install()
    assert entrance.alive()
    assert entrance.uninstall()
    assert objects_of(empty) == before
