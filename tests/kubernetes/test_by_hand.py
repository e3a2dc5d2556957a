"""What `render` writes, applied with kubectl, is what `create` makes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlflow_domino.cluster import Cluster
from mlflow_domino.labels import ENDPOINT, KIND, MANAGED
from mlflow_domino.models import Status, Target
from mlflow_domino.render import write
from mlflow_domino.views import EndpointView
from tests.conftest import eventually
from tests.deployment import ECHO, Deployment
from tests.kubernetes.hand import kubectl
from tests.load import Load

KINDS = ("ConfigMap", "Secret", "Service", "Deployment", "PodDisruptionBudget")


@pytest.fixture(scope="module")
def context() -> str:
    """One cluster is enough: what differs between two is where they are."""
    return "local"


def found(namespace: Cluster, view: EndpointView) -> dict[str, Any]:
    """Return an endpoint's objects as the server has them, with words in place of ids, names, times and hashes of these."""
    (version,) = [v.version for v in view.versions if v.version.target is Target.RUNNING]
    words = {view.endpoint.id: "ENDPOINT", version.id: "VERSION", view.endpoint.name: "NAME"}
    objects = {}
    for kind in KINDS:
        for one in namespace.list(kind, f"{MANAGED},{ENDPOINT}={view.endpoint.id}"):
            meta = one["metadata"]
            ours = {k: v for k, v in meta.get("annotations", {}).items() if k == "mlflow-domino/endpoint-name"}
            content = sorted(one["data"]) if kind == "Secret" else one.get("data")
            text = json.dumps([meta["labels"], ours, one.get("spec"), content])
            text = re.sub(r'"mlflow-domino/configuration": "\w+"', "", text)
            text = re.sub(r'\\"(created_ms|artifact)\\": (\d+|\{.*?\})', "", text)
            for word, meaning in words.items():
                text = text.replace(word, meaning)
            objects[f"{kind} {meta['labels'][KIND]}"] = text
    return objects


def test_what_is_rendered_and_applied_is_what_create_makes_and_is_looked_after_likewise(
    deployment: Deployment, namespace: Cluster, tmp_path: Path
) -> None:
    project = deployment.project(tmp_path / "1", ECHO, VALUE=1)
    made = deployment.create("made-by-create", project, replicas=2, **{"env.A": "b"})
    assert made.current is not None
    assert made.current.version.artifact is not None
    image = made.current.version.artifact.environment

    config = {"file": "model.py", "replicas": 2, "env.A": "b"}
    write(deployment.controller, tmp_path / "out", "made-by-hand", project, config, image)
    deployment._made.append("made-by-hand")
    for name in ("model.yaml", "records.yaml"):
        file = tmp_path / "out" / name
        file.write_text(file.read_text().replace("A: …", "A: b").replace('"A": "…"', '"A": "b"'))
        kubectl(namespace, "apply", "-f", str(file))
    _token, deployment.token = deployment.controller.create_token("made-by-hand", "default")
    eventually(lambda: deployment.controller.endpoint("made-by-hand").status is Status.RUNNING, within=90)
    view = deployment.controller.endpoint("made-by-hand")
    eventually(lambda: deployment.call(view, {"data": {}}).status_code == 200, within=30)
    assert deployment.call(view, {"data": {}}).json()["result"] == 1
    assert found(namespace, view) == found(namespace, made)

    deployment.update("made-by-hand", replicas=1)
    deployment.update("made-by-hand", deployment.project(tmp_path / "2", ECHO, VALUE=2))
    assert deployment.call(view, {"data": {}}).json()["result"] == 2
    deployment.controller.rollback("made-by-hand")
    assert deployment.call(view, {"data": {}}).json()["result"] == 1

    load = Load(view.url, deployment.token, {"data": {}}, rate=50)
    with load.running():
        write(deployment.controller, tmp_path / "next", "made-by-hand", None, {}, image)
        kubectl(namespace, "apply", "-f", str(tmp_path / "next" / "model.yaml"))
        kubectl(namespace, "rollout", "status", "--timeout=90s", "deployment", "-l", f"{ENDPOINT}={view.endpoint.id}")
        kubectl(namespace, "apply", "-f", str(tmp_path / "next" / "records.yaml"))
        eventually(lambda: released(deployment, view) == 3, within=30)
        assert deployment.controller.endpoint("made-by-hand").endpoint.next_number == 4
        deployment.controller.rollback("made-by-hand")
    assert not load.failed, load.failures[:5]
    assert released(deployment, view) == 1


def released(deployment: Deployment, view: EndpointView) -> Any:
    return deployment.call(view, {"data": {}}).json()["release"]["model_version_number"]
