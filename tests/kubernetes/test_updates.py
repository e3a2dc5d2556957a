"""Nothing that happens to versions, pods or gateways fails a request, while one in a hundred takes 20 seconds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import StartFailed
from mlflow_domino.labels import TOKENS, labels
from mlflow_domino.models import Status
from tests.conftest import eventually
from tests.contract import BROKEN
from tests.deployment import Deployment
from tests.kubernetes.hand import kubectl, running
from tests.load import Load

SOMETIMES_SLOW = """
import itertools, time
NUMBERS = itertools.count(1)
def predict(x=0):
    if next(NUMBERS) % 100 == 0:
        time.sleep(20)
    return VALUE
"""


@pytest.fixture(scope="module")
def context() -> str:
    """One cluster is enough: what differs between two is where they are."""
    return "local"


def replace_one(cluster: Cluster, kind: str, replicas: int) -> None:
    """Have a pod end as `kubectl delete pod` and a drained node do, and wait for its successor."""
    gone = running(cluster, kind)[0]
    cluster.delete("Pod", gone)
    eventually(lambda: len({*running(cluster, kind)} - {gone}) >= replicas, within=120)


def test_no_request_fails_whatever_is_replaced(deployment: Deployment, namespace: Cluster, tmp_path: Path) -> None:
    settings = {"threads": 48, "drain_s": 60}
    view = deployment.create("steady", deployment.project(tmp_path / "1", SOMETIMES_SLOW, VALUE=1), **settings)
    load = Load(view.url, deployment.token, {"data": {}}, rate=100, threads=64)
    with load.running():
        deployment.update("steady", deployment.project(tmp_path / "2", SOMETIMES_SLOW, VALUE=2))
        with pytest.raises(StartFailed, match="no such weights"):
            deployment.update("steady", deployment.project(tmp_path / "3", BROKEN))
        deployment.controller.rollback("steady")
        deployment.update("steady", replicas=2)
        replace_one(namespace, "model", 2)
        replace_one(namespace, "gateway", 2)
        deployment.update("steady", replicas=1)
    assert not load.failed, load.failures[:5]
    assert set(load.results) == {"1", "2"}
    assert deployment.controller.endpoint("steady").status is Status.RUNNING


def test_a_token_is_valid_and_refused_from_the_moment_that_the_command_returns(
    deployment: Deployment, tmp_path: Path
) -> None:
    project = deployment.project(tmp_path / "1", "def predict():\n    return 1\n")
    view = deployment.create("closed", project, replicas=2, workers=2)
    for _ in range(3):
        _token, text = deployment.controller.create_token("closed", "second")
        answers = [deployment.call(view, {"data": {}}, auth=(text, text)).status_code for _ in range(20)]
        assert answers == [200] * 20
        deployment.controller.revoke_token("closed", "second")
        answers = [deployment.call(view, {"data": {}}, auth=(text, text)).status_code for _ in range(20)]
        assert answers == [401] * 20


def test_a_token_waits_for_no_pod_that_leaves_and_for_the_one_in_its_place(
    deployment: Deployment, namespace: Cluster, tmp_path: Path
) -> None:
    project = deployment.project(tmp_path / "1", "def predict():\n    return 1\n")
    view = deployment.create("left", project, replicas=2)
    stuck = running(namespace, "model")[0]
    kubectl(namespace, "exec", stuck, "--", "sh", "-c", "kill -STOP -1")  # its worker takes no change of tokens
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(deployment.controller.create_token, "left", "second")
        eventually(lambda: TOKENS in (namespace.get("Pod", stuck) or {})["metadata"].get("annotations", {}))
        assert not making.done()
        namespace.delete("Pod", stuck)
        _token, text = making.result(timeout=60)
    assert stuck in {pod["metadata"]["name"] for pod in namespace.list("Pod", labels("model"))}
    namespace.delete("Pod", stuck, grace_s=0)
    eventually(lambda: len(running(namespace, "model")) == 2, within=60)
    answers = [deployment.call(view, {"data": {}}, auth=(text, text)).status_code for _ in range(20)]
    assert answers == [200] * 20
