"""200 requests a second, while versions fail in every way that there is: none of it costs a request, or leaves a trace."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlflow_domino.errors import EnvironmentFailed, InvalidInput, StartFailed
from mlflow_domino.home import Home
from mlflow_domino.models import Status
from tests.conftest import eventually, processes_of
from tests.deployment import ECHO, Deployment
from tests.load import Load

BODY = {"data": {"x": 1}}
FAULTS: dict[str, tuple[str, dict[str, Any], type[Exception]]] = {
    "cannot be parsed": ("def predict(:\n", {}, InvalidInput),
    "cannot be imported": ("import a_package_that_is_not_there\n", {}, StartFailed),
    "exits": ("import sys\nsys.exit(3)\n", {}, StartFailed),
    "ends the process": ("import os\nos._exit(4)\n", {}, StartFailed),
    "hangs": ("import time\ntime.sleep(3600)\n", {"start_timeout_s": 2}, StartFailed),
    "hangs in C": ("sum(range(10**13))\n", {"start_timeout_s": 2}, StartFailed),
    "fails its warm-up": ("", {"warmup_file": "warm.json"}, StartFailed),
    "cannot be resolved": ("", {"environment": "flask==0.1", "offline": True}, EnvironmentFailed),
    "lacks its Python": ("", {"python_version": "3.99", "python_downloads": False}, EnvironmentFailed),
}


@pytest.mark.slow
def test_versions_that_fail_in_every_way_cost_no_request(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create("loaded", deployment.project(tmp_path / "good", ECHO, VALUE=1))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "warm.json").write_text('{"data": {"x": ')
    load = Load(view.url, deployment.token, BODY)
    with load.running():
        for fault, (code, config, kind) in FAULTS.items():
            with pytest.raises(kind):
                deployment.update("loaded", deployment.project(tmp_path / "bad", code + ECHO, VALUE=fault), **config)
    assert not load.failed, load.failures[:5]
    assert set(load.results) == {"1"}
    assert load.answers[200] > 500
    after = deployment.controller.endpoint("loaded")
    assert after.status is Status.RUNNING
    assert [v.version.number for v in after.versions if v.seen.status is Status.RUNNING] == [1]


def test_a_token_is_exchanged_without_a_request_that_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create("rotating", deployment.project(tmp_path, ECHO, VALUE=1), replicas=2, workers=2)
    for number in range(3):
        _record, text = deployment.controller.create_token("rotating", f"next-{number}")
        old, new = Load(view.url, deployment.token, BODY, rate=100), Load(view.url, text, BODY, rate=100)
        with new.running():
            with old.running():
                eventually(lambda new=new: new.answers[200] > 50)
            deployment.controller.revoke_token("rotating", "default" if number == 0 else f"next-{number - 1}")
            assert deployment.call(view, BODY).status_code == 401
            before = new.answers[200]
            eventually(lambda new=new, before=before: new.answers[200] > before + 50)
        assert not old.failed, old.failures[:5]
        assert not new.failed, new.failures[:5]
        deployment.token = text


OVERDUE = """
import os, time
def predict(sleep=0.0, loop=False):
    time.sleep(sleep)
    if loop:
        sum(range(10**13))  # one bytecode: holds the interpreter's lock, and sees no signal
    return os.getpid()
"""


@pytest.mark.parametrize("shape", [{"workers": 3}, {"replicas": 2, "workers": 3}], ids=str)
def test_overdue_requests_get_504_and_end_with_their_processes_and_no_other_does(
    deployment: Deployment, tmp_path: Path, shape: dict[str, int]
) -> None:
    project = deployment.project(tmp_path, OVERDUE)
    view = deployment.create("overdue", project, request_timeout_s=2, drain_s=2, **shape)
    before = alive(deployment.home)
    with ThreadPoolExecutor(20) as pool:
        slow = [pool.submit(deployment.call, view, {"data": d}) for d in ({"sleep": 60}, {"loop": True})]
        good = [pool.submit(deployment.call, view, {"data": {"sleep": 0.02}}) for _ in range(50)]
        assert [a.result().status_code for a in slow] == [504, 504], [a.result().text for a in slow]
        failed = [a.result().text for a in good if a.result().status_code != 200]
    assert not failed, failed
    # What slept is interrupted and what looped is killed, at the latest drain_s later; others take their place.
    eventually(lambda: len(before - alive(deployment.home)) == 2, within=15)
    again = [deployment.call(view, {"data": {}}) for _ in range(10)]
    assert {a.status_code for a in again} == {200}
    assert len(before - alive(deployment.home)) == 2
    assert deployment.controller.endpoint("overdue").status is Status.RUNNING


def alive(home: Home) -> set[int]:
    return {p.pid for p in processes_of(home)}


def traces(home: Home) -> dict[str, list[str]]:
    """What is left of endpoints, by folder."""
    places = [home.root / name for name in ("versions", "endpoints", "callers", "locks")]
    places += [home.run / name for name in ("s", "vassals", "launch")]
    return {
        place.name: sorted(p.name for p in place.iterdir() if not p.name.startswith("gateway"))
        for place in places
        if place.exists()
    }


def descriptors(home: Home) -> int:
    return sum(p.num_fds() for p in processes_of(home))


def test_twenty_endpoints_come_and_go_and_leave_nothing(deployment: Deployment, home: Home, tmp_path: Path) -> None:
    project = deployment.project(tmp_path, ECHO, VALUE=1)
    counted = []
    for number in range(20):
        view = deployment.create(f"passing-{number}", project, **{"env.A": "a secret value"})
        assert deployment.call(view, BODY).ok
        deployment.controller.delete(f"passing-{number}")
        if number in (1, 19):
            counted.append((traces(home), len(processes_of(home)), descriptors(home), len(os.listdir("/proc/self/fd"))))
    first, last = counted
    assert not any(last[0][name] for name in ("versions", "endpoints", "callers", "s", "vassals", "launch")), last[0]
    assert last[0]["locks"] == first[0]["locks"]
    assert last[1] == first[1]
    assert last[2] <= first[2] + 3
    assert last[3] <= first[3]
