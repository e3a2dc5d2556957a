"""Several data planes of one home, one that does not answer, and one endpoint that several people look after."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mlflow_domino import invocation
from mlflow_domino.cluster import Cluster
from mlflow_domino.controller import Controller
from mlflow_domino.errors import Conflict, DominoError, NotFound, Unavailable, Unreachable, Unsupported
from mlflow_domino.home import Home
from mlflow_domino.models import Status
from mlflow_domino.views import EndpointView
from tests.conftest import eventually
from tests.deployment import ECHO, Deployment
from tests.kubernetes.people import People, at
from tests.kubernetes.stage import Cable, by_cable
from tests.load import Load

GREETS = """
import os
def predict():
    return [VALUE, os.environ.get("GREETING")]
"""


@pytest.fixture(scope="module")
def context() -> str:
    """`namespace` is in this cluster, `elsewhere` in the other."""
    return "local"


@pytest.fixture
def cable(elsewhere: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cable]:
    """The only way to the remote cluster, as the context `far`."""
    cable = Cable(elsewhere.server)
    far = by_cable(tmp_path / "kubeconfig", elsewhere.context, cable, name="far")
    with monkeypatch.context() as patch:
        patch.setenv("KUBECONFIG", f"{os.environ['KUBECONFIG']}:{far}")
        yield cable
    cable.close()


def within(seconds: float, do: Callable[[], Any]) -> Any:
    """Return what a function does, which must not take longer."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(do).result(timeout=seconds)
    finally:
        pool.shutdown(wait=False)


def result(deployment: Deployment, view: EndpointView) -> Any:
    return deployment.call(view, {"data": {}}).json()["result"]


def test_one_home_has_endpoints_in_several_clusters_each_with_its_own_url_and_tokens(
    people: People, namespace: Cluster, elsewhere: Cluster, tmp_path: Path
) -> None:
    home = people.home(near=at(namespace), far={**at(elsewhere), "remote": True})
    near, far = Deployment(home, "domino:/near"), Deployment(home, "domino:/far")
    here = near.create("twice", near.project(tmp_path / "1", ECHO, VALUE="near"))
    there = far.create("twice", far.project(tmp_path / "2", ECHO, VALUE="far"))
    assert (result(near, here), result(far, there)) == ("near", "far")
    assert urlsplit(here.url).hostname == urlsplit(namespace.server).hostname
    assert urlsplit(there.url).hostname == urlsplit(elsewhere.server).hostname
    assert far.call(there, {"data": {}}, auth=(near.token, near.token)).status_code == 401
    with pytest.raises(Unsupported, match="remote data plane do not support asynchronous"):
        far.create("queued", far.project(tmp_path / "2", ECHO, VALUE="far"), is_async=True)
    assert [v.endpoint.name for v in far.controller.endpoints()] == ["twice"]
    far.clean()
    assert result(near, here) == "near"
    near.clean()
    for one in (near, far):
        one.controller.down()


@pytest.mark.parametrize("silently", [False, True], ids=["refuses", "is silent"])
def test_a_data_plane_that_does_not_answer_is_unreachable_and_comes_back_by_itself(
    people: People, namespace: Cluster, elsewhere: Cluster, cable: Cable, tmp_path: Path, silently: bool
) -> None:
    home = people.home(near=at(namespace), far={"context": "far", "namespace": elsewhere.namespace, "remote": True})
    near, far = Deployment(home, "domino:/near"), Deployment(home, "domino:/far")
    here = near.create("here", near.project(tmp_path / "1", ECHO, VALUE=1))
    there = far.create("there", far.project(tmp_path / "2", ECHO, VALUE=2))
    load = Load(there.url, far.token, {"data": {}})
    with load.running():
        cable.cut(silently=silently)
        (lost,) = within(4, lambda: far.controller.endpoints())
        assert (lost.endpoint.name, lost.status, lost.url) == ("there", Status.UNREACHABLE, there.url)
        assert "does not answer" in lost.reason
        assert within(4, lambda: far.controller.endpoint("there").status) is Status.UNREACHABLE
        for verb in (
            lambda c: c.scale("there", 2),
            lambda c: c.delete("there"),
            lambda c: c.create_token("there", "second"),
            lambda c: c.endpoint("never-heard-of"),
        ):
            with pytest.raises(Unreachable, match="does not answer"):
                within(20, lambda verb=verb: verb(far.controller))  # type: ignore[misc]
        assert near.controller.endpoint("here").status is Status.RUNNING
        near.update("here", near.project(tmp_path / "3", ECHO, VALUE=3))
        assert result(near, here) == 3
        cable.mend()
        eventually(lambda: far.controller.endpoint("there").status is Status.RUNNING, within=30)
        far.update("there", replicas=2)
    assert not load.failed, load.failures[:5]
    near.clean()
    far.clean()
    for one in (near, far):
        one.controller.down()


def test_a_command_during_which_the_data_plane_stops_to_answer_fails_and_the_next_one_finishes(
    people: People, elsewhere: Cluster, cable: Cable, tmp_path: Path
) -> None:
    home = people.home(far={"context": "far", "namespace": elsewhere.namespace, "remote": True})
    far = Deployment(home, "domino:/far")
    view = far.create("there", far.project(tmp_path / "1", ECHO, VALUE=1))
    slow = far.project(tmp_path / "2", "import time\ntime.sleep(4)\n" + ECHO, VALUE=2)
    failed: list[DominoError] = []

    def update() -> None:
        with pytest.raises(Unavailable) as caught:
            far.update("there", slow)
        failed.append(caught.value)

    verb = threading.Thread(target=update)
    verb.start()
    eventually(lambda: far.controller.endpoint("there").versions[-1].seen.status is Status.STARTING, within=60)
    cable.cut()
    verb.join()
    assert "does not answer" in str(failed[0])
    assert result(far, view) == 1
    cable.mend()
    eventually(lambda: not far.controller.records.operations(), within=60)
    after = far.controller.endpoint("there")
    assert (after.status, after.current and after.current.version.number) == (Status.RUNNING, 1)
    assert result(far, view) == 1
    far.clean()
    far.controller.down()


def test_two_people_look_after_one_endpoint(
    people: People, namespace: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_DOMINO_TOKEN", raising=False)
    mine, theirs = people.home(kube=at(namespace)), people.home(shared=at(namespace))
    me, they = Deployment(mine, "domino:/kube"), Deployment(theirs, "domino:/shared")
    view = me.create("ours", me.project(tmp_path / "1", GREETS, VALUE=1), **{"env.GREETING": "hello"})
    seen = they.controller.endpoint("ours")
    assert (seen.status, seen.url, seen.endpoint.data_plane) == (Status.RUNNING, view.url, "shared")
    they.update("ours", **{"env.GREETING": "good day"})  # its source comes out of the image
    assert result(me, view) == [1, "good day"]
    assert me.controller.endpoint("ours").current == they.controller.endpoint("ours").current
    they.controller.rollback("ours")
    assert result(me, view) == [1, "hello"]
    assert they.controller.plane.logs(they.controller.find_version("ours"))[0].read_text()
    with pytest.raises(NotFound, match="token create ours"):
        invocation.token_for(theirs, they.controller.endpoint("ours"))
    _token, text = they.controller.create_token("ours", "theirs")
    assert me.call(view, {"data": {}}, auth=(text, text)).ok
    me.controller.revoke_token("ours", "theirs")
    assert they.call(view, {"data": {}}, auth=(text, text)).status_code == 401
    conflict_cleanly(me, they, tmp_path)
    they.controller.delete("ours")
    with pytest.raises(NotFound):
        me.controller.endpoint("ours")
    assert me.call(view, {"data": {}}).status_code == 404
    me.controller.down()


def conflict_cleanly(me: Deployment, they: Deployment, tmp_path: Path) -> None:
    slow = me.project(tmp_path / "slow", "import time\ntime.sleep(3)\n" + GREETS, VALUE=3)
    mine = threading.Thread(target=me.update, args=("ours", slow))
    mine.start()
    eventually(lambda: they.controller.endpoint("ours").pending == "update", within=30)
    for verb in (lambda: they.update("ours", replicas=2), lambda: they.controller.delete("ours")):
        with pytest.raises(Conflict, match="`update` is at work on it"):
            verb()
    mine.join()
    after = they.controller.endpoint("ours")
    assert (after.status, after.pending) == (Status.RUNNING, "")
    assert result(me, after) == [3, "hello"]


def test_a_home_that_knows_nothing_yet_says_that_nothing_answers(people: People, cable: Cable) -> None:
    cable.cut()
    home: Home = people.home(far={"context": "far", "namespace": "any"})
    assert Controller.open("domino:/far", home=home).endpoints() == []
    with pytest.raises(Unreachable, match="does not answer"):
        Controller.open("domino:/far", home=home).endpoint("iris")
