"""Time from the command to the new version serving on Kubernetes, image already built, beside `kubectl rollout`.

python -m tests.benchmarks.rollout --context local --registry localhost:5000 [--model iris] [--rounds 5]

Ours goes from one version to the other by `rollback`, which starts it, waits for it and moves the route; the other side is a
Deployment with the same pods, whose template is changed from the one version's to the other's, until `kubectl rollout
status` says that it is done.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import subprocess
import threading
import time
from typing import Any

import requests

from mlflow_domino.cluster import Cluster
from mlflow_domino.controller import Controller
from mlflow_domino.home import Home
from mlflow_domino.labels import model_name, variables_name
from mlflow_domino.views import EndpointView
from tests.benchmarks.measure import scratch
from tests.benchmarks.models import MODELS

_PLAIN = "plain"
_LIMIT_S = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--context", required=True)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--model", choices=MODELS, default="iris")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    outside = Cluster(options.context, "default")
    name = f"benchmark-{secrets.token_hex(4)}"
    outside.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    try:
        with scratch() as folder:
            home = Home(folder / "home")
            home.root.mkdir()
            home.config.write_text(
                f'[data_planes.kube]\nkind = "kubernetes"\ncontext = "{options.context}"\nnamespace = "{name}"\n'
                f'registry = "{options.registry}"\n'
            )
            _measure(home, str(MODELS[options.model](folder).path), options.rounds)
    finally:
        outside.delete("Namespace", name)


def _measure(home: Home, model: str, rounds: int) -> None:
    controller = Controller.open("domino:/kube", home=home)
    controller.create("iris", model, {})
    one = _template(controller, controller.endpoint("iris"))
    view = controller.update("iris", None, {"env.ROUND": "2"})
    two = _template(controller, view)
    cluster = Cluster(controller.plane.cluster.context, controller.plane.cluster.namespace)  # type: ignore[attr-defined]
    cluster.apply(_deployment(two))
    _rolled(cluster)
    ours, theirs = [], []
    for round_ in range(rounds):
        begun = time.monotonic()
        cluster.patch(
            "Deployment", _PLAIN, [{"op": "replace", "path": "/spec/template", "value": (one, two)[round_ % 2]}]
        )
        _rolled(cluster)
        theirs.append(time.monotonic() - begun)
        ours.append(_rollback(controller, view))
        print(f"kubectl rollout {theirs[-1]:5.2f} s   rollback {ours[-1]:5.2f} s", flush=True)
    more = statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
    print(f"a new version served {more:+.2f} s after `kubectl rollout` of the same pods, the median of {rounds} rounds")
    controller.delete("iris")
    controller.down()


def _rollback(controller: Controller, view: EndpointView) -> float:
    """Return the time from the command to the first answer of the other version."""
    token = controller.create_token("iris", f"t{time.monotonic_ns()}")[1]
    document = view.url.removesuffix("/model") + "/openapi.json"
    session = requests.Session()
    session.auth = (token, token)
    version = session.get(document, timeout=10).json()["info"]["version"]
    begun = time.monotonic()
    command = threading.Thread(target=controller.rollback, args=("iris",))
    command.start()
    while session.get(document, timeout=10).json()["info"]["version"] == version:
        assert time.monotonic() - begun < _LIMIT_S, "the other version does not serve"
    took = time.monotonic() - begun
    command.join()
    return took


def _template(controller: Controller, view: EndpointView) -> dict[str, Any]:
    """Return the pods of the latest version, as pods that belong to nobody, with copies of what they read."""
    assert view.current is not None
    cluster: Cluster = controller.plane.cluster  # type: ignore[attr-defined]
    version = view.current.version.id
    found = cluster.get("Deployment", model_name(version))
    assert found is not None
    for kind, name in (("ConfigMap", model_name(version)), ("Secret", variables_name(version))):
        read = cluster.get(kind, name)
        if read is not None:
            copied = {k: read[k] for k in ("apiVersion", "kind", "data")}
            cluster.apply({**copied, "metadata": {"name": f"{_PLAIN}-{name}"}})
    text = json.dumps(found["spec"]["template"]).replace(f'"{version}"', f'"{_PLAIN}"')
    for name in (model_name(version), variables_name(version)):
        text = text.replace(f'"{name}"', f'"{_PLAIN}-{name}"')
    template: dict[str, Any] = json.loads(text)
    template["metadata"] = {"labels": {"app": _PLAIN}}
    return template


def _deployment(template: dict[str, Any]) -> dict[str, Any]:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": _PLAIN}}, "strategy": strategy, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": _PLAIN}, "spec": spec}


def _rolled(cluster: Cluster) -> None:
    kubectl = ["kubectl", "--context", cluster.context, "-n", cluster.namespace]
    subprocess.run(
        [*kubectl, "rollout", "status", f"deployment/{_PLAIN}", f"--timeout={_LIMIT_S}s"],
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    main()
