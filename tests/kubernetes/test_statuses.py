"""What status and logs tell of pods that do not serve: the cluster's own reasons, within seconds, with the log that explains."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from mlflow_domino.cluster import Cluster
from mlflow_domino.controller import Controller
from mlflow_domino.data_planes import pods
from mlflow_domino.errors import StartFailed
from mlflow_domino.home import Home
from mlflow_domino.labels import labels
from mlflow_domino.models import Status
from mlflow_domino.views import EndpointView
from tests.conftest import eventually
from tests.contract import BROKEN
from tests.deployment import ECHO, Deployment

CRASHES = """
import os, signal
if os.path.exists("/tmp/broken"):
    raise RuntimeError("no such weights")
def predict(die=False):
    if die:
        open("/tmp/broken", "w").close()
        os.kill(os.getppid(), signal.SIGKILL)
    return VALUE
"""
HUNGRY = """
HELD = bytearray(b"x") * (600 << 20)
def predict():
    return len(HELD)
"""
LOADS_SLOWLY_THE_SECOND_TIME = """
import os, signal, time
if os.path.exists("/tmp/slow"):
    os.remove("/tmp/slow")
    time.sleep(600)
def predict(die=False):
    if die:
        open("/tmp/slow", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return VALUE
"""
FILLS = """
import time
time.sleep(5)
def predict(mib=0):
    with open("/tmp/much", "wb") as file:
        for _ in range(mib):
            file.write(b"x" * (1 << 20))
    return mib
"""
HANGS = """
import time
time.sleep(600)
def predict():
    return 1
"""
TIERS = """
[hardware_tiers.small]
cores = 0.5
memory = "192Mi"
[hardware_tiers.huge]
cores = 500
"""


@pytest.fixture(scope="module")
def context() -> str:
    """One cluster is enough: what differs between two is where they are."""
    return "local"


@pytest.fixture(scope="module", autouse=True)
def _tiers(plane_home: Home) -> None:
    with plane_home.config.open("a") as file:
        file.write(TIERS)
    Controller.open("domino:/kube", home=plane_home).up()


def seen(deployment: Deployment, name: str, *, within: float = 90, **wanted: Any) -> EndpointView:
    """Wait until an endpoint has some status and words in its reason; return it as it was then."""
    views: list[EndpointView] = []

    def there() -> bool:
        views.append(deployment.controller.endpoint(name))
        return views[-1].status is wanted["status"] and wanted.get("reason", "") in views[-1].reason

    try:
        eventually(there, within=within)
    except AssertionError as error:
        raise AssertionError(f"{views[-1].status.value}: {views[-1].reason}") from error
    return views[-1]


def log_of(view: EndpointView) -> str:
    assert view.current
    return view.current.seen.log_tail


@contextlib.contextmanager
def no_more_pods(namespace: Cluster) -> Iterator[None]:
    """Have a quota refuse every new pod."""
    meta = {"name": "full"}
    namespace.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": {"pods": "0"}}})
    eventually(lambda: (namespace.get("ResourceQuota", "full") or {}).get("status", {}).get("used"), within=30)
    try:
        yield
    finally:
        namespace.delete("ResourceQuota", "full")


def remove_from_registry(image: str) -> None:
    host, _, rest = image.partition("/")
    repository, _, tag = rest.rpartition(":")
    accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    found = requests.head(f"http://{host}/v2/{repository}/manifests/{tag}", headers=accept, timeout=10)
    digest = found.headers["Docker-Content-Digest"]
    assert requests.delete(f"http://{host}/v2/{repository}/manifests/{digest}", timeout=10).ok


def test_a_quota_that_is_used_up_and_an_image_that_is_gone_are_said_in_the_clusters_words(
    deployment: Deployment, namespace: Cluster, tmp_path: Path
) -> None:
    project = deployment.project(tmp_path / "1", ECHO, VALUE=str(tmp_path))
    with no_more_pods(namespace):
        with pytest.raises(StartFailed, match="exceeded quota"):
            deployment.create("gone", project)
        view = deployment.controller.endpoint("gone")
        assert view.status is Status.FAILED
        assert "its pod cannot be made" in view.reason
        assert view.current
        assert view.current.version.artifact
    remove_from_registry(view.current.version.artifact.environment)
    with pytest.raises(StartFailed, match="its image cannot be pulled: Failed to pull"):
        deployment.controller.rollback("gone", 1)
    assert deployment.controller.endpoint("gone").status is Status.FAILED


def test_a_version_that_served_and_crashes_is_failed_with_its_own_reason_and_log(
    deployment: Deployment, tmp_path: Path
) -> None:
    view = deployment.create("crashes", deployment.project(tmp_path / "1", CRASHES, VALUE=1))
    deployment.call(view, {"data": {"die": True}})
    failed = seen(deployment, "crashes", status=Status.FAILED, reason="RuntimeError: no such weights")
    assert "Traceback" in log_of(failed)
    assert log_of(failed).endswith("no such weights")
    assert failed.current
    assert failed.current.seen.ready == 0
    deployment.update("crashes", deployment.project(tmp_path / "2", ECHO, VALUE=2))
    assert deployment.call(view, {"data": {}}).json()["result"] == 2


def test_want_of_memory_is_said_with_the_limit(deployment: Deployment, tmp_path: Path) -> None:
    deployment.create("hungry", deployment.project(tmp_path / "1", ECHO, VALUE=1), hardware_tier="small")
    with pytest.raises(StartFailed, match=r"want of memory \(limit 192Mi\)") as caught:
        deployment.update("hungry", deployment.project(tmp_path / "2", HUNGRY))
    assert "killed by signal 9" in caught.value.log_tail
    assert deployment.controller.endpoint("hungry").status is Status.RUNNING


@pytest.mark.parametrize(
    ("settings", "code", "reason"),
    [({"hardware_tier": "huge"}, ECHO, "Insufficient cpu"), ({}, HANGS, "start_timeout_s")],
    ids=["no place", "hangs"],
)
def test_a_rollout_that_cannot_finish_is_given_up_in_time_and_the_old_version_serves(
    deployment: Deployment, namespace: Cluster, tmp_path: Path, settings: dict[str, Any], code: str, reason: str
) -> None:
    view = deployment.create("patient", deployment.project(tmp_path / "1", ECHO, VALUE=1))
    project = deployment.project(tmp_path / "2", code, VALUE=2)
    errors: list[StartFailed] = []

    def update() -> None:
        with pytest.raises(StartFailed) as caught:
            deployment.update("patient", project, start_timeout_s=10, **settings)
        errors.append(caught.value)

    rollout = threading.Thread(target=update)
    rollout.start()
    if settings:
        eventually(lambda: reason in deployment.controller.endpoint("patient").versions[-1].seen.reason, within=60)
        assert deployment.controller.endpoint("patient").pending == "update"
        assert deployment.controller.endpoint("patient").status is Status.RUNNING
    rollout.join()
    assert reason in str(errors[0])
    after = deployment.controller.endpoint("patient")
    assert after.status is Status.RUNNING
    assert after.versions[-1].seen.status in (Status.STALLED, Status.FAILED)
    assert reason in after.versions[-1].seen.reason
    assert deployment.call(view, {"data": {}}).json()["result"] == 1
    left = namespace.list("Pod", labels("model", version=after.versions[-1].version.id))
    assert not pods.alive(left)


def test_a_failing_probe_is_said_and_the_replica_started_again(deployment: Deployment, tmp_path: Path) -> None:
    project = deployment.project(tmp_path / "1", LOADS_SLOWLY_THE_SECOND_TIME, VALUE=1)
    impatient = {
        "health_period_s": 1,
        "health_timeout_s": 1,
        "failure_threshold": 1,
        "request_timeout_s": 1,
        "start_timeout_s": 20,
    }
    view = deployment.create("probed", project, **impatient)
    deployment.call(view, {"data": {"die": True}})
    seen(deployment, "probed", status=Status.STARTING, reason="Readiness probe failed")
    seen(deployment, "probed", status=Status.STARTING, reason="it is being started again")
    seen(deployment, "probed", status=Status.RUNNING)
    assert deployment.call(view, {"data": {}}).json()["result"] == 1


def test_an_evicted_pod_says_why_it_was_ended(deployment: Deployment, namespace: Cluster, tmp_path: Path) -> None:
    limits = {"type": "Container", "default": {"ephemeral-storage": "30Mi"}}
    small = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": {"limits": [limits]}}
    namespace.apply(small)
    try:
        view = deployment.create("fills", deployment.project(tmp_path / "1", FILLS))
        assert deployment.call(view, {"data": {"mib": 100}}).ok
        evicted = seen(deployment, "fills", status=Status.STARTING, reason="Evicted", within=150)
        assert "storage" in evicted.reason
        seen(deployment, "fills", status=Status.RUNNING)
    finally:
        namespace.delete("LimitRange", "small")


def test_a_replica_whose_pod_waits_for_a_place_is_missing_with_the_reason(
    deployment: Deployment, namespace: Cluster, tmp_path: Path
) -> None:
    view = deployment.create("scarce", deployment.project(tmp_path / "1", ECHO, VALUE=1), replicas=2)
    one = pods.ready(namespace.list("Pod", labels("model")))[0]
    with no_more_pods(namespace):
        namespace.delete("Pod", one["metadata"]["name"])
        degraded = seen(deployment, "scarce", status=Status.RUNNING, reason="exceeded quota")
        assert degraded.reason.startswith("1 of 2 replicas ready")
        assert deployment.call(view, {"data": {}}).ok
    seen_whole: Callable[[], bool] = lambda: not deployment.controller.endpoint("scarce").reason  # noqa: E731
    eventually(seen_whole, within=120)


def test_logs_of_pods_that_a_command_ended_are_kept_where_it_ran(deployment: Deployment, tmp_path: Path) -> None:
    deployment.create("logged", deployment.project(tmp_path / "1", ECHO, VALUE=1))
    with pytest.raises(StartFailed):
        deployment.update("logged", deployment.project(tmp_path / "2", BROKEN))
    failed = deployment.controller.find_version("logged", 2)
    (path,) = deployment.controller.plane.logs(failed)
    assert "no such weights" in path.read_text()
    assert "building" in deployment.controller.plane.logs(failed, build=True)[0].read_text()
