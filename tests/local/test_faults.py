"""kill -9 of everything that there is, under load; and of the CLI in the middle of a verb."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from mlflow_domino.home import Home
from mlflow_domino.models import Status
from tests.conftest import eventually, processes_of
from tests.deployment import ECHO, Deployment
from tests.load import Load


def supervisor_of(home: Home) -> psutil.Process:
    return psutil.Process(int((home.run / "supervisor.pid").read_text()))


def family(home: Home) -> dict[str, list[psutil.Process]]:
    """Processes of the home by their part: master, emperor, envoy, vassals (first processes of replicas), workers."""
    master = supervisor_of(home)
    parts: dict[str, list[psutil.Process]] = {
        "master": [master],
        "emperor": [],
        "envoy": [],
        "vassals": [],
        "workers": [],
    }
    for child in master.children():
        parts[
            "envoy" if "envoy" in Path(child.exe()).name or "envoy" in " ".join(child.cmdline()) else "emperor"
        ].append(child)
    for vassal in parts["emperor"][0].children():
        if "DOMINO_REPLICA_DIR" in vassal.environ():
            parts["vassals"].append(vassal)
            parts["workers"] += [worker for uwsgi in vassal.children() for worker in uwsgi.children()]
    return parts


def answers(view: object, deployment: Deployment) -> bool:
    try:
        return deployment.call(view, {"data": {}}).status_code == 200  # type: ignore[arg-type]
    except requests.RequestException:
        return False


def test_killing_a_replica_of_two_costs_at_most_what_it_worked_on(
    deployment: Deployment, home: Home, tmp_path: Path
) -> None:
    view = deployment.create("pair", deployment.project(tmp_path / "p", ECHO, VALUE=1), replicas=2)
    load = Load(view.url, deployment.token, {"data": {}})
    with load.running():
        eventually(lambda: load.answers[200] > 100)
        family(home)["vassals"][0].kill()
        eventually(lambda: deployment.controller.endpoint("pair").current.seen.ready == 1, every=0)
        eventually(lambda: deployment.controller.endpoint("pair").current.seen.ready == 2, within=15)
    # What was accepted or waiting at the replica that died, which had half of the connections at most.
    assert load.failed <= load.threads // 2, load.failures[:10]


def test_killing_a_worker_costs_at_most_what_it_worked_on(deployment: Deployment, home: Home, tmp_path: Path) -> None:
    view = deployment.create("workers", deployment.project(tmp_path / "p", ECHO, VALUE=1), workers=2)
    pids = set()
    load = Load(view.url, deployment.token, {"data": {}})
    with load.running():
        for _ in range(2):
            victim = max(family(home)["workers"], key=lambda p: p.pid)
            pids.add(victim.pid)
            victim.kill()
            before = sum(load.answers.values())
            eventually(lambda b=before: sum(load.answers.values()) > b + 50, within=15)
    assert load.failed <= len(pids), load.failures[:10]


@pytest.mark.parametrize("part", ["envoy", "emperor"])
def test_what_was_killed_comes_back_by_itself(deployment: Deployment, home: Home, tmp_path: Path, part: str) -> None:
    view = deployment.create(f"back-{part}", deployment.project(tmp_path / "p", ECHO, VALUE=1))
    victim = family(home)[part][0]
    victim.kill()
    begun = time.monotonic()
    eventually(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE)
    eventually(lambda: answers(view, deployment), within=20)
    took = time.monotonic() - begun
    print(f"{part}: back after {took:.1f} s")
    assert deployment.controller.endpoint(f"back-{part}").status is Status.RUNNING


def test_a_dead_master_leaves_nothing_and_the_next_verb_brings_everything_back(
    deployment: Deployment, home: Home, tmp_path: Path
) -> None:
    view = deployment.create("phoenix", deployment.project(tmp_path / "p", ECHO, VALUE=1))
    supervisor_of(home).kill()
    eventually(lambda: not processes_of(home), within=10)
    unreachable = deployment.controller.endpoint("phoenix")
    assert unreachable.status is Status.UNREACHABLE
    assert "mlflow-domino up" in unreachable.reason
    assert deployment.controller.up()
    eventually(lambda: answers(view, deployment), within=20)


CUT = """
import os, sys, signal, threading
from mlflow_domino.controller import Controller
import mlflow_domino.rollout as rollout, mlflow_domino.data_planes.local as local
where, verb, name, uri = sys.argv[1:]
owner, _, method = where.rpartition(".")
target = {"Rollout": rollout.Rollout, "LocalDataPlane": local.LocalDataPlane}[owner]
real = getattr(target, method)
def cut(self, *a, **k):
    if os.environ.get("AFTER"):
        real(self, *a, **k)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(target, method, cut)
controller = Controller.open()
config = {"file": "model.py"}
if verb == "update": controller.update(name, uri, config)
elif verb == "create": controller.create(name, uri, config)
elif verb == "rollback": controller.rollback(name)
elif verb == "scale": controller.scale(name, 2)
elif verb == "delete": controller.delete(name)
elif verb == "stop": controller.stop(name)
"""


def cut(home: Home, where: str, verb: str, name: str, uri: str = "", *, after: bool = False) -> None:
    """Run a verb in a process that dies of SIGKILL at, or just after, a call of `where`."""
    environment = {**os.environ, "MLFLOW_DOMINO_HOME": str(home.root), "AFTER": "1" if after else ""}
    done = subprocess.run([sys.executable, "-c", CUT, where, verb, name, uri], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "where",
    [
        "LocalDataPlane.build",
        "LocalDataPlane.start",
        "LocalDataPlane.publish",
        "LocalDataPlane.drain",
        "LocalDataPlane.stop",
    ],
)
def test_an_update_killed_anywhere_is_finished_or_undone_by_the_next_command(
    deployment: Deployment, home: Home, tmp_path: Path, where: str, after: bool
) -> None:
    view = deployment.create("cut", deployment.project(tmp_path / "1", ECHO, VALUE=1))
    load = Load(view.url, deployment.token, {"data": {}}, rate=50)
    with load.running():
        cut(home, where, "update", "cut", deployment.project(tmp_path / "2", ECHO, VALUE=2), after=after)
        settled = deployment.controller.endpoint("cut")
    assert any("interrupted" in line for line in deployment.said)
    assert not load.failed, load.failures[:5]
    assert settled.status is Status.RUNNING
    assert settled.pending == ""
    finished = where in ("LocalDataPlane.publish", "LocalDataPlane.drain", "LocalDataPlane.stop")
    assert settled.current.version.number == (2 if finished else 1)
    others = [v for v in settled.versions if v.version.id != settled.endpoint.latest]
    assert all(v.seen.status in (Status.STOPPED, Status.FAILED, Status.READY_TO_RUN) for v in others)
    assert len(family(home)["vassals"]) == 1
    assert deployment.call(view, {"data": {}}).json()["result"] == (2 if finished else 1)


@pytest.mark.parametrize(
    ("where", "verb"),
    [("LocalDataPlane.publish", "delete"), ("LocalDataPlane.stop", "delete"), ("LocalDataPlane.publish", "stop"),
     ("LocalDataPlane.start", "scale"), ("LocalDataPlane.publish", "scale"), ("Rollout.change", "scale"),
     ("LocalDataPlane.start", "create"),
     ("LocalDataPlane.build", "create")],
)  # fmt: skip
def test_any_verb_killed_is_finished_or_undone_by_the_next_command(
    deployment: Deployment, home: Home, tmp_path: Path, where: str, verb: str
) -> None:
    project = deployment.project(tmp_path / "1", ECHO, VALUE=1)
    if verb != "create":
        deployment.create("any", project)
    cut(home, where, verb, "any", project, after=True)
    views = {v.endpoint.name: v for v in deployment.controller.endpoints()}
    assert any("interrupted" in line for line in deployment.said)
    if verb == "delete":
        assert "any" not in views
        assert not family(home)["vassals"]
        return
    assert views["any"].pending == ""
    if verb == "stop":
        assert views["any"].status is Status.STOPPED
        assert not family(home)["vassals"]
    if verb == "scale":
        eventually(lambda: deployment.controller.endpoint("any").current.seen.ready == len(family(home)["vassals"]))
        after = deployment.controller.endpoint("any")
        assert after.endpoint.settings.replicas == after.current.version.replicas
    if verb == "create":
        assert views["any"].status in (Status.FAILED, Status.READY_TO_RUN)
        assert not family(home)["vassals"]
    deployment.controller.delete("any")


def test_the_gateways_own_application_comes_back_and_endpoints_never_notice(
    deployment: Deployment, home: Home, tmp_path: Path
) -> None:
    view = deployment.create("unmoved", deployment.project(tmp_path / "p", ECHO, VALUE=1))
    base = view.url.split("/models/")[0]
    eventually(lambda: requests.get(f"{base}/health", timeout=5).ok, within=20)
    load = Load(view.url, deployment.token, {"data": {}})
    with load.running():
        application = next(
            p
            for p in family(home)["emperor"][0].children()
            if "DOMINO_GATEWAY_INVENTORY" in p.environ() or "gateway" in " ".join(p.cmdline())
        )
        application.kill()
        eventually(lambda: not requests.get(f"{base}/health", timeout=5).ok)
        eventually(lambda: requests.get(f"{base}/health", timeout=5).ok, within=20)
    assert not load.failed, load.failures[:5]


def test_metrics_of_every_replica_stand_in_one_place_behind_the_management_token(
    deployment: Deployment, home: Home, tmp_path: Path
) -> None:
    view = deployment.create("measured", deployment.project(tmp_path / "p", ECHO, VALUE=1), replicas=2, workers=2)
    for _ in range(20):
        assert deployment.call(view, {"data": {}}).ok
    base = view.url.split("/models/")[0]
    eventually(lambda: requests.get(f"{base}/health", timeout=5).ok, within=20)
    assert requests.get(f"{base}/metrics", timeout=10).status_code == 401
    token = (home.root / "management-token").read_text().strip()
    text = requests.get(f"{base}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=10).text
    counted = [
        line
        for line in text.splitlines()
        if view.endpoint.id in line and "requests_total" in line and 'code="200"' in line
    ]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in counted if "envoy" not in line) == 20, counted
