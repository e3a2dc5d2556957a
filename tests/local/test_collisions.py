"""Verbs that meet: on one endpoint, on one home, and with the end of what they work on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlflow_domino import secret
from mlflow_domino.data_planes import gateway
from mlflow_domino.errors import AlreadyExists, Conflict, DominoError, InvalidInput, NotFound
from mlflow_domino.home import Home
from mlflow_domino.models import Status
from tests.conftest import eventually, free_port, processes_of
from tests.deployment import ECHO, Deployment
from tests.load import Load
from tests.local.test_faults import answers, family, supervisor_of

SLOW = "import time\ntime.sleep({})\n" + ECHO
VERB = """
import sys
from mlflow_domino.controller import Controller
from mlflow_domino.errors import DominoError
verb, *arguments = sys.argv[1:]
try:
    controller = Controller.open(say=print)
    if verb in ("create", "update"): getattr(controller, verb)(*arguments, {"file": "model.py"})
    else: getattr(controller, verb)(*arguments)
    print("done")
except DominoError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def begin(home: Home, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Run a verb in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", VERB, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MLFLOW_DOMINO_HOME": str(home.root), **environment},
    )  # fmt: skip


def outcome(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return "done" if process.returncode == 0 else err.strip() or out


def vassals(home: Home) -> int:
    return len(family(home)["vassals"])


def test_of_two_creates_of_one_name_one_wins(deployment: Deployment, home: Home, tmp_path: Path) -> None:
    project = deployment.project(tmp_path, SLOW.format(0.5), VALUE=1)
    deployment._made.append("wanted")
    both = [begin(home, "create", "wanted", project) for _ in range(3)]
    outcomes = sorted(outcome(p).split(":")[0] for p in both)
    assert outcomes.count("done") == 1
    assert set(outcomes) <= {"done", "Conflict", "AlreadyExists"}
    view = deployment.controller.endpoint("wanted")
    assert view.status is Status.RUNNING
    assert vassals(home) == 1


def test_endpoints_created_at_once_by_processes_all_answer(deployment: Deployment, home: Home, tmp_path: Path) -> None:
    deployment.controller.down()
    names = [f"crowd-{number}" for number in range(8)]
    deployment._made += names
    for name in names:
        deployment.project(tmp_path / name, ECHO, VALUE=name)
    begun = [begin(home, "create", name, str(tmp_path / name)) for name in names]
    assert [outcome(p) for p in begun] == ["done"] * len(names)
    for name in names:
        view = deployment.controller.endpoint(name)
        token = secret.read_caller(home, view.endpoint.id)
        assert deployment.call(view, {"data": {}}, auth=(token, token)).json()["result"] == name
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(deployment.controller.delete, names))
    assert vassals(home) == 0


def test_a_delete_during_an_update_is_refused_and_an_update_during_a_delete_too(
    deployment: Deployment, home: Home, tmp_path: Path
) -> None:
    deployment.create("both", deployment.project(tmp_path / "1", ECHO, VALUE=1))
    updating = begin(home, "update", "both", deployment.project(tmp_path / "2", SLOW.format(3), VALUE=2))
    eventually(lambda: deployment.controller.endpoint("both").pending == "update")
    with pytest.raises(Conflict, match="`update` is at work on it"):
        deployment.controller.delete("both")
    assert outcome(updating) == "done"
    slow = deployment.project(tmp_path / "3", "import time\ndef predict(): time.sleep(3)\n")
    view = deployment.update("both", slow)
    calling = threading.Thread(target=deployment.call, args=(view, {"data": {}}))
    calling.start()
    eventually(lambda: deployment.controller.plane.drain(view.current.version, 0) is False)
    deleting = begin(home, "delete", "both")
    eventually(lambda: deployment.controller.endpoint("both").pending == "delete")
    with pytest.raises((Conflict, NotFound)):
        deployment.update("both", slow)
    assert outcome(deleting) == "done"
    calling.join()
    with pytest.raises(NotFound):
        deployment.update("both", slow)


def test_two_ups_at_once_start_one_supervisor(deployment: Deployment, home: Home, tmp_path: Path) -> None:
    view = deployment.create("once", deployment.project(tmp_path, ECHO, VALUE=1))
    deployment.controller.down()
    assert not processes_of(home)
    assert [outcome(p) for p in [begin(home, "up") for _ in range(3)]] == ["done"] * 3
    eventually(lambda: answers(view, deployment), within=20)
    assert vassals(home) == 1
    emperors = [p for p in processes_of(home) if str(home.run / "supervisor.ini") in p.cmdline()]
    assert len([p for p in emperors if p.parent() not in emperors]) == 1


def test_down_during_an_update_fails_it_and_up_brings_back_what_was(
    deployment: Deployment, home: Home, tmp_path: Path
) -> None:
    view = deployment.create("sunk", deployment.project(tmp_path / "1", ECHO, VALUE=1))
    updating = begin(home, "update", "sunk", deployment.project(tmp_path / "2", SLOW.format(30), VALUE=2))
    eventually(lambda: len(deployment.controller.endpoint("sunk").versions) == 2)
    eventually(lambda: deployment.controller.endpoint("sunk").versions[1].seen.status is Status.STARTING)
    deployment.controller.down()
    assert "supervisor does not run" in outcome(updating)
    assert not processes_of(home)
    deployment.controller.up()
    eventually(lambda: answers(view, deployment), within=20)
    assert deployment.call(view, {"data": {}}).json()["result"] == 1
    assert vassals(home) == 1


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.9])
def test_an_up_that_is_killed_is_repeated(deployment: Deployment, home: Home, tmp_path: Path, delay: float) -> None:
    view = deployment.create("again", deployment.project(tmp_path, ECHO, VALUE=1))
    deployment.controller.down()
    up = begin(home, "up")
    eventually(lambda: (home.root / "locks" / "supervisor").exists())
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began >= delay)
    up.kill()
    up.communicate()
    deployment.controller.up()
    eventually(lambda: answers(view, deployment), within=20)
    assert vassals(home) == 1


def test_envoy_may_die_at_any_moment_of_an_update(deployment: Deployment, home: Home, tmp_path: Path) -> None:
    view = deployment.create("rocked", deployment.project(tmp_path / "0", ECHO, VALUE=0))
    for number, pause in enumerate((0.0, 0.01), start=1):
        project = deployment.project(tmp_path / str(number), ECHO, VALUE=number)
        real = gateway.LocalGateway.publish

        def killing(self: Any, world: Any, real: Any = real, pause: float = pause) -> None:
            envoy = family(home)["envoy"][0]
            threading.Timer(pause, envoy.kill).start()
            real(self, world)

        gateway.LocalGateway.publish = killing  # type: ignore[method-assign]
        try:
            deployment.update("rocked", project)
        finally:
            gateway.LocalGateway.publish = real  # type: ignore[method-assign]
        eventually(lambda: answers(view, deployment), within=20)
        assert deployment.call(view, {"data": {}}).json()["result"] == number
        assert vassals(home) == 1


@pytest.mark.parametrize("moment", ["building", "starting", "draining"])
def test_the_supervisor_may_die_during_an_update(
    deployment: Deployment, home: Home, tmp_path: Path, moment: str
) -> None:
    view = deployment.create("shot", deployment.project(tmp_path / "1", "import time\n" + ECHO, VALUE=1))
    project = deployment.project(tmp_path / "2", SLOW.format(2), VALUE=2)
    plane = type(deployment.controller.plane)
    name = {"building": "build", "starting": "start", "draining": "drain"}[moment]
    real = getattr(plane, name)

    def shooting(self: Any, *arguments: Any, **named: Any) -> Any:
        setattr(plane, name, real)
        result = real(self, *arguments, **named)
        supervisor_of(home).send_signal(signal.SIGKILL)
        eventually(lambda: not processes_of(home))
        return result

    setattr(plane, name, shooting)
    try:
        deployment.update("shot", project)
        wanted = 2
    except DominoError:
        wanted = 1
    finally:
        setattr(plane, name, real)
    deployment.controller.up()
    eventually(lambda: answers(view, deployment), within=20)
    after = deployment.controller.endpoint("shot")
    assert after.pending == ""
    assert deployment.call(view, {"data": {}}).json()["result"] == wanted
    assert vassals(home) == 1


def test_a_clock_that_jumps_back_moves_routes_all_the_same(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = deployment.create("timeless", deployment.project(tmp_path / "1", ECHO, VALUE=1))
    real, real_ns = time.time, time.time_ns
    load = Load(view.url, deployment.token, {"data": {}}, rate=50)
    with load.running():
        for number, jump in enumerate((-86400 * 365, 86400 * 365, -3600), start=2):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            monkeypatch.setattr(time, "time_ns", lambda jump=jump: real_ns() + jump * 10**9)
            deployment.update("timeless", deployment.project(tmp_path / str(number), ECHO, VALUE=number))
            assert deployment.controller.endpoint("timeless").status is Status.RUNNING
            assert deployment.call(view, {"data": {}}).json()["result"] == number
    monkeypatch.undo()
    assert not load.failed, load.failures[:5]


PLACES = {
    "long": "a-folder-with-a-long-name/" * 8,
    "blank": "my models",
    "other alphabets": "häuser 模型",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_home_may_be_anywhere(home: Home, tmp_path_factory: pytest.TempPathFactory, place: str) -> None:
    root = tmp_path_factory.mktemp("p") / PLACES[place]
    root.mkdir(parents=True)
    try_home(Home(root), home)


def test_a_home_is_one_home_through_links_and_whatever_tmpdir_says(
    home: Home, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("l")
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    deployment = prepared(Home(folder / "real"), home)
    monkeypatch.setenv("MLFLOW_DOMINO_HOME", str(folder / "link"))
    other = Deployment(Home.find())
    try:
        view = deployment.create("linked", deployment.project(folder / "1", ECHO, VALUE=1))
        (folder / "tmp").mkdir()
        monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
        assert other.controller.up() is False
        other.update("linked", other.project(folder / "2", ECHO, VALUE=2))
        monkeypatch.setenv("TMPDIR", str(folder / "absent"))
        assert deployment.call(view, {"data": {}}).json()["result"] == 2
        deployment.controller.rollback("linked")
        assert deployment.call(view, {"data": {}}).json()["result"] == 1
        other.controller.delete("linked")
    finally:
        deployment.controller.down()
        other.controller.down()
    assert not processes_of(deployment.home)
    assert not processes_of(other.home)


@pytest.mark.parametrize("part", ["100%n", "$(id)", "@(exec:/true)", "'a'"])
@pytest.mark.parametrize("deep", ["", "a-folder-with-a-long-name/" * 3])
def test_a_home_whose_path_uwsgi_would_interpret_is_refused(
    home: Home, tmp_path_factory: pytest.TempPathFactory, part: str, deep: str
) -> None:
    root = tmp_path_factory.mktemp("p") / part / deep
    root.mkdir(parents=True)
    deployment = prepared(Home(root), home)
    with pytest.raises(InvalidInput, match="characters that uWSGI would interpret; set MLFLOW_DOMINO_HOME"):
        deployment.create("placed", deployment.project(root / "p", ECHO, VALUE=1))
    assert not processes_of(deployment.home)


def prepared(place: Home, home: Home) -> Deployment:
    (place.root / "config.toml").write_text(f"[data_planes.local]\nport = {free_port()}\n")
    place.environments.symlink_to(home.environments.resolve())
    return Deployment(place)


def try_home(place: Home, home: Home) -> None:
    """Deploy, update, fail and delete in a home at `place`."""
    deployment = prepared(place, home)
    project = deployment.project(place.root / "p", ECHO, VALUE=1)
    try:
        view = deployment.create("placed", project)
        assert deployment.call(view, {"data": {}}).json()["result"] == 1
        deployment.update("placed", replicas=2)
        assert deployment.controller.up() is False
        with pytest.raises(AlreadyExists):
            deployment.create("placed", project)
        deployment.controller.delete("placed")
        assert vassals(place) == 0
    finally:
        deployment.controller.down()
    assert not processes_of(place)
