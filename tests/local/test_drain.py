"""What ends is idle before it ends, and what waits in its queue is answered."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import eventually
from tests.deployment import Deployment
from tests.load import Load

SLOW = """
import time
def predict():
    time.sleep(0.02)
"""


def test_a_replica_that_is_scaled_away_answers_what_waits_for_it(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create("queue", deployment.project(tmp_path / "p", SLOW), replicas=2)
    load = Load(view.url, deployment.token, {"data": {}}, threads=24)
    with load.running():
        eventually(lambda: load.answers[200] > 50)
        for replicas in (1, 2, 1, 2, 1):
            deployment.controller.scale("queue", replicas)
    assert load.failed == 0, load.failures[:5]
