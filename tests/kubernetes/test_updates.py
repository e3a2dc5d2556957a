"""Nothing that happens to versions, pods or gateways fails a request, while one in a hundred takes 20 seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import StartFailed
from mlflow_domino.labels import labels
from mlflow_domino.models import Status
from tests.conftest import eventually
from tests.contract import BROKEN
from tests.deployment import Deployment
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


def names_of(cluster: Cluster, kind: str) -> set[str]:
    """Return the pods of a kind that answer, by name."""
    found = cluster.list("Pod", labels(kind))
    return {
        pod["metadata"]["name"]
        for pod in found
        if "deletionTimestamp" not in pod["metadata"]
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))
    }


def replace_one(cluster: Cluster, kind: str, replicas: int) -> None:
    """Have a pod end as `kubectl delete pod` and a drained node do, and wait for its successor."""
    before = names_of(cluster, kind)
    gone = sorted(before)[0]
    cluster.delete("Pod", gone)
    eventually(lambda: len(names_of(cluster, kind) - {gone}) >= replicas, within=120)


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
