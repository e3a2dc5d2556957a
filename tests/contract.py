"""What every data plane must do; `tests/local`, `tests/docker` and `tests/kubernetes` each run it whole."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_domino.builder import Builder
from mlflow_domino.errors import AlreadyExists, Conflict, InvalidInput, NotFound, StartFailed
from mlflow_domino.home import Home
from mlflow_domino.models import Status
from tests.conftest import eventually
from tests.deployment import ECHO, Deployment
from tests.load import Load

BROKEN = """
raise RuntimeError("no such weights")
def predict(x=0):
    return x
"""


#: What there is of each sort of things that a data plane makes for endpoints, by name.
Things = dict[str, set[str]]


def files_of(home: Home) -> set[str]:
    """Return what the home has of endpoints and versions, tokens and locks included."""
    found = {
        path.name for folder in ("versions", "endpoints", "callers", "locks") for path in home.root.glob(f"{folder}/*")
    }
    return {name for name in found if re.fullmatch("(tokens-)?[0-9a-f]{24}", name)}


#: An old kubelet says for two minutes that a pod runs which was ended while it mounted the pod's volumes.
ENDING_S = 200


class ImagesOf:
    """Returns the images of a home's versions that are there; those of versions that are gone meanwhile, too."""

    def __init__(self, home: Home, builder: Builder) -> None:
        self._home = home
        self._builder = builder
        self._known: set[str] = set()

    def __call__(self) -> set[str]:
        for path in self._home.root.glob("versions/*/images.json"):
            self._known.update(json.loads(path.read_text()))
        return {name for name in self._known if self._builder.image(name) is not None}


class DataPlaneContract:
    """Subclasses give a `deployment` fixture on their data plane, and `things`, which looks at all that is there of it."""

    def test_a_project_becomes_an_endpoint_that_answers_with_dominos_envelope(
        self, deployment: Deployment, tmp_path: Path
    ) -> None:
        view = deployment.create("echo", deployment.project(tmp_path / "p", ECHO, VALUE="one"))
        assert view.status is Status.RUNNING
        answer = deployment.call(view, {"data": {"x": 1}})
        assert answer.status_code == 200
        assert answer.json()["result"] == "one"
        assert answer.json()["release"]["model_version_number"] == 1
        assert len(answer.json()["request_id"]) == 16

    def test_without_a_valid_token_nobody_reaches_a_model(self, deployment: Deployment, tmp_path: Path) -> None:
        view = deployment.create("closed", deployment.project(tmp_path / "p", ECHO, VALUE=1))
        for auth in (None, ("a", "b"), (deployment.token, "x"), ("", "")):
            answer = deployment.call(view, {"data": {}}, auth=auth)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Basic")
        bearer = deployment.call(view, {"data": {}}, auth=None, headers={"Authorization": f"Bearer {deployment.token}"})
        assert bearer.status_code == 200

    def test_update_rollback_scale_and_tokens_drop_no_request_and_deleting_leaves_nothing(
        self, deployment: Deployment, things: Callable[[], Things], tmp_path: Path
    ) -> None:
        deployment.controller.up()
        before = things()
        view = deployment.create("steady", deployment.project(tmp_path / "1", ECHO, VALUE=1), **{"env.A": "b"})
        load = Load(view.url, deployment.token, {"data": {"x": 1}})
        with load.running():
            deployment.update("steady", deployment.project(tmp_path / "2", ECHO, VALUE=2))
            with pytest.raises(StartFailed, match="no such weights"):
                deployment.update("steady", deployment.project(tmp_path / "3", BROKEN))
            deployment.update("steady", replicas=2)
            deployment.controller.rollback("steady")
            assert deployment.controller.endpoint("steady").current.version.replicas == 2
            deployment.update("steady", replicas=1)
            _token, text = deployment.controller.create_token("steady", "second")
            assert deployment.call(view, {"data": {}}, auth=(text, text)).status_code == 200
            deployment.controller.revoke_token("steady", "second")
            assert deployment.call(view, {"data": {}}, auth=(text, text)).status_code == 401
        assert not load.failed, load.failures[:5]
        assert set(load.results) == {"1", "2"}
        made = things()
        assert all(made[sort] - before[sort] for sort in made), made
        deployment.controller.delete("steady")
        with contextlib.suppress(AssertionError):
            eventually(lambda: things() == before, within=ENDING_S)
        assert things() == before

    def test_a_version_that_fails_changes_nothing_and_says_why(self, deployment: Deployment, tmp_path: Path) -> None:
        view = deployment.create("careful", deployment.project(tmp_path / "1", ECHO, VALUE=1))
        with pytest.raises(StartFailed) as caught:
            deployment.update("careful", deployment.project(tmp_path / "2", BROKEN))
        assert "no such weights" in str(caught.value)
        assert deployment.call(view, {"data": {}}).json()["result"] == 1
        after = deployment.controller.endpoint("careful")
        assert [v.seen.status for v in after.versions] == [Status.RUNNING, Status.FAILED]
        assert "no such weights" in after.versions[1].seen.reason

    def test_promotion_moves_prod_only(self, deployment: Deployment, tmp_path: Path) -> None:
        view = deployment.create("routed", deployment.project(tmp_path / "1", ECHO, VALUE=1), routing_mode="advanced")
        deployment.update("routed", deployment.project(tmp_path / "2", ECHO, VALUE=2))
        results = {
            r: deployment.call(view, {"data": {}}, route=f"{r}/model").json().get("result")
            for r in ("latest", "labels/prod", "1", "2")
        }
        assert results == {"latest": 2, "labels/prod": 1, "1": 1, "2": 2}
        prod = Load(view.url.replace("latest/model", "labels/prod/model"), deployment.token, {"data": {}})
        with prod.running():
            deployment.controller.promote("routed", 2)
        assert not prod.failed, prod.failures[:5]
        assert deployment.call(view, {"data": {}}, route="labels/prod/model").json()["result"] == 2
        assert deployment.call(view, {"data": {}}, route="1/model").status_code == 404

    def test_a_stopped_endpoint_answers_503_and_starts_again(self, deployment: Deployment, tmp_path: Path) -> None:
        view = deployment.create("pausing", deployment.project(tmp_path / "1", ECHO, VALUE=1))
        stopped = deployment.controller.stop("pausing")
        assert stopped.status is Status.STOPPED
        answer = deployment.call(view, {"data": {}})
        assert answer.status_code == 503
        assert "stopped" in answer.json()["error"]["message"]
        assert deployment.controller.start("pausing").status is Status.RUNNING
        assert deployment.call(view, {"data": {}}).json()["result"] == 1

    def test_stop_refuses_at_once_and_finishes_what_is_in_flight(self, deployment: Deployment, tmp_path: Path) -> None:
        slow = "import time\ndef predict(s=0):\n    time.sleep(s)\n    return s\n"
        view = deployment.create("stopping", deployment.project(tmp_path / "1", slow), threads=4)
        answers: list[int] = []
        caller = threading.Thread(target=lambda: answers.append(deployment.call(view, {"data": {"s": 3}}).status_code))
        caller.start()
        eventually(lambda: not deployment.controller.plane.drain(view.versions[0].version, 0))
        other = threading.Thread(target=deployment.controller.stop, args=("stopping",))
        other.start()
        eventually(lambda: deployment.call(view, {"data": {}}).status_code == 503, within=3)
        assert not answers
        other.join()
        caller.join()
        assert answers == [200]

    def test_down_finishes_the_requests_in_flight_and_up_brings_everything_back(
        self, deployment: Deployment, tmp_path: Path
    ) -> None:
        slow = "import time\ndef predict(s=0):\n    time.sleep(s)\n    return s\n"
        view = deployment.create("resting", deployment.project(tmp_path / "1", slow))
        answers: list[int] = []
        caller = threading.Thread(target=lambda: answers.append(deployment.call(view, {"data": {"s": 2}}).status_code))
        caller.start()
        eventually(lambda: not deployment.controller.plane.drain(view.versions[0].version, 0))
        deployment.controller.down()
        caller.join()
        assert answers == [200]
        assert deployment.controller.up()
        eventually(lambda: deployment.controller.endpoint("resting").status is Status.RUNNING, within=30)
        eventually(lambda: deployment.call(view, {"data": {"s": 0}}).ok)

    def test_settings_change_by_a_new_rollout_of_the_same_source(self, deployment: Deployment, tmp_path: Path) -> None:
        code = "import os\ndef predict():\n    return os.environ.get('GREETING')\n"
        view = deployment.create("greeting", deployment.project(tmp_path / "1", code), **{"env.GREETING": "hello"})
        assert deployment.call(view, {"data": {}}).json()["result"] == "hello"
        deployment.update("greeting", **{"env.GREETING": "100% $(HOME) @(exec://true) 'x' \"y\"\nz"})
        answer = deployment.call(view, {"data": {}}).json()
        assert answer["result"] == "100% $(HOME) @(exec://true) 'x' \"y\"\nz"
        assert answer["release"]["model_version_number"] == 2

    def test_deleting_is_idempotent_and_leaves_no_route(self, deployment: Deployment, tmp_path: Path) -> None:
        view = deployment.create("gone", deployment.project(tmp_path / "1", ECHO, VALUE=1))
        deployment.controller.delete("gone")
        deployment.controller.delete("gone")
        assert deployment.call(view, {"data": {}}).status_code == 404
        with pytest.raises(NotFound, match="gone"):
            deployment.controller.endpoint("gone")

    def test_a_name_is_taken_once(self, deployment: Deployment, tmp_path: Path) -> None:
        project = deployment.project(tmp_path / "1", ECHO, VALUE=1)
        deployment.create("taken", project)
        with pytest.raises(AlreadyExists, match="update"):
            deployment.create("taken", project)

    def test_two_changes_of_one_endpoint_at_once_conflict(self, deployment: Deployment, tmp_path: Path) -> None:
        slow = "import time\ntime.sleep(2)\n" + ECHO
        deployment.create("contended", deployment.project(tmp_path / "1", ECHO, VALUE=1))
        project = deployment.project(tmp_path / "2", slow, VALUE=2)
        other = threading.Thread(target=deployment.update, args=("contended", project))
        other.start()
        eventually(lambda: deployment.controller.endpoint("contended").pending == "update")
        with pytest.raises(Conflict, match="update"):
            deployment.controller.rollback("contended")
        other.join()
        assert deployment.controller.endpoint("contended").endpoint.next_number == 3

    def test_a_refused_create_leaves_nothing(self, deployment: Deployment, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="did you mean 'replicas'"):
            deployment.create("nothing", deployment.project(tmp_path / "1", ECHO, VALUE=1), replica=2)
        with pytest.raises((InvalidInput, NotFound)):
            deployment.create("nothing", str(tmp_path / "absent"))
        with pytest.raises(NotFound):
            deployment.controller.endpoint("nothing")

    def test_a_create_that_failed_can_be_repeated(self, deployment: Deployment, tmp_path: Path) -> None:
        with pytest.raises(StartFailed, match="no such weights"):
            deployment.create("second-try", deployment.project(tmp_path / "1", BROKEN))
        view = deployment.controller.endpoint("second-try")
        assert view.status is Status.FAILED
        assert "no such weights" in view.reason
        view = deployment.create("second-try", deployment.project(tmp_path / "2", ECHO, VALUE=1))
        assert deployment.call(view, {"data": {}}).json()["result"] == 1
