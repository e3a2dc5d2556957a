"""What `mlflow-domino prune` shows and removes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlflow_domino import prune
from mlflow_domino.cli import main
from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.local import LocalDataPlane
from mlflow_domino.home import Home, write_json
from mlflow_domino.memory import Memory
from mlflow_domino.models import Artifact, FileSource, Operation, Status, Target, Version, new_id
from mlflow_domino.store import SqliteRecords

USED, UNUSED = "a" * 24, "b" * 24


@pytest.fixture
def controller(tmp_path, monkeypatch) -> Controller:
    monkeypatch.setenv("MLFLOW_DOMINO_HOME", str(tmp_path / "home"))
    return Controller.open(home=Home.find())


def make_old(path: Path, seconds: float = 10 * 86400) -> None:
    then = time.time() - seconds
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            os.utime(Path(folder) / name, (then, then))
    os.utime(path, (then, then))


def add_version(controller: Controller, name: str, **changes) -> Version:
    endpoint = controller.endpoint(name).endpoint
    version = Version(
        new_id(),
        endpoint.id,
        endpoint.next_number,
        0,
        FileSource("/p", "model.py", "predict", "0" * 64),
        endpoint.settings,
        status=Status.STOPPED,
        artifact=Artifact(USED, "f" * 64, "used-harness", "3.11.7"),
    )
    version = controller.records.save_version(dataclasses.replace(version, **changes))
    controller.records.save_endpoint(
        dataclasses.replace(endpoint, next_number=version.number + 1, latest=version.id, previous=endpoint.latest)
    )
    folder = controller.home.version(version.id)
    (folder / "logs").mkdir(parents=True)
    (folder / "logs/replica-0.log").write_text("log\n")
    (folder / "logs/replica-0.log.1").write_text("rotated\n")
    (folder / "source").mkdir()
    (folder / "source/model.py").write_text("x = 1\n")
    (folder / "source/model.py").chmod(0o444)
    return version


def add_environment(controller: Controller, name: str) -> Path:
    path = controller.home.environments / name
    (path / "bin").mkdir(parents=True)
    (path / "bin/python").symlink_to(sys.executable)
    write_json(path / "domino.json", {"python": "3.11.7", "size": 1234})
    return path


def kinds(plan: list[prune.Item]) -> set[tuple[str, str]]:
    return {(item.kind, item.name) for item in plan}


@pytest.fixture
def full(controller) -> Controller:
    """An endpoint that keeps two versions and has four, two environments, two harnesses, a leftover; all old."""
    controller.create_endpoint("iris", {"keep_versions": "2"})
    for _ in range(4):
        add_version(controller, "iris")
    add_environment(controller, USED)
    add_environment(controller, UNUSED)
    for folder in ("harnesses/used-harness", "harnesses/old-harness", f"versions/{'c' * 24}"):
        (controller.home.root / folder).mkdir(parents=True)
    make_old(controller.home.root)
    return controller


def test_what_nobody_needs_is_named_and_nothing_else(full):
    assert kinds(prune.plan(full)) == {
        ("version", "iris 1"),
        ("version", "iris 2"),
        ("environment", UNUSED),
        ("harness", "old-harness"),
        ("folder", "c" * 24),
        *(("log", f"iris {number} replica-0.log{part}") for number in (3, 4) for part in ("", ".1")),
    }


def test_what_was_used_lately_stays(full):
    plan = prune.plan(full, older_than_s=30 * 86400)
    assert kinds(plan) == {("version", "iris 1"), ("version", "iris 2")}


def test_fewer_versions_may_be_kept_but_never_the_routed_one(full):
    versions = {item.name for item in prune.plan(full, keep=1) if item.kind == "version"}
    assert versions == {"iris 1", "iris 2", "iris 3"}


def test_a_version_that_runs_keeps_its_place_and_its_log(full):
    oldest = full.records.versions()[0]
    full.records.save_version(dataclasses.replace(oldest, target=Target.RUNNING))
    plan = prune.plan(full, keep=1)
    assert ("version", "iris 1") not in kinds(plan)
    assert ("log", "iris 1 replica-0.log") not in kinds(plan)
    assert ("log", "iris 1 replica-0.log.1") in kinds(plan)


def test_while_a_verb_is_at_work_only_records_are_looked_at(full):
    endpoint = full.endpoint("iris").endpoint
    full.records.save_operation(Operation(endpoint.id, "update", "begun", os.getpid(), 0))
    assert {item.kind for item in prune.plan(full)} == {"version", "log"}


class Elsewhere(LocalDataPlane):
    """A data plane that keeps its own records, as a cluster does, and shares the home's folders."""

    def own_records(self) -> SqliteRecords:
        return SqliteRecords(Home(self.home.root / "elsewhere"))


@pytest.fixture
def elsewhere(full) -> Controller:
    (full.home.root / "elsewhere").mkdir()
    plane = Elsewhere(full.home, Declaration("elsewhere"))
    return Controller(full.home, plane, plane.own_records())


def test_a_data_plane_with_its_own_records_leaves_those_of_the_home_their_folders(full, elsewhere):
    assert kinds(prune.plan(elsewhere)) == {
        ("environment", UNUSED),
        ("harness", "old-harness"),
        ("folder", "c" * 24),
    }


def test_what_was_last_seen_of_a_data_plane_with_its_own_records_keeps_its_folders(full, elsewhere):
    elsewhere.create_endpoint("far")
    artifact = Artifact("registry/image:1", "f" * 64, "old-harness", "3.11.7")
    add_version(elsewhere, "far", artifact=artifact)
    view = elsewhere.endpoint("far")
    make_old(full.home.root / "versions")
    assert Memory(full.home, "elsewhere").recall()
    planned = kinds(prune.plan(full))
    assert ("folder", view.versions[0].version.id) not in planned
    assert ("harness", "old-harness") not in planned
    assert ("folder", "c" * 24) in planned


def test_a_verb_at_work_on_another_data_plane_of_the_home_counts_too(full, elsewhere):
    endpoint = full.endpoint("iris").endpoint
    full.records.save_operation(Operation(endpoint.id, "update", "begun", os.getpid(), 0))
    assert prune.plan(elsewhere) == []


def test_an_environment_in_which_something_runs_stays(full, tmp_path):
    program = full.home.environments / UNUSED / "bin/python"
    with subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert ("environment", UNUSED) not in kinds(prune.plan(full))
        process.communicate(b"\n")
    assert ("environment", UNUSED) in kinds(prune.plan(full))


def test_a_plan_is_carried_out(full):
    said: list[str] = []
    plan = prune.plan(full)
    prune.carry_out(full, plan, said.append)
    assert said == []
    assert not [item for item in plan if item.path.exists()]
    assert [v.number for v in full.records.versions()] == [3, 4]
    assert (full.home.environments / USED).exists()
    assert prune.plan(full) == []


def test_what_is_used_again_by_then_stays_and_is_said(full):
    said: list[str] = []
    plan = prune.plan(full)
    oldest = full.records.versions()[0]
    full.records.save_version(dataclasses.replace(oldest, target=Target.RUNNING))
    prune.carry_out(full, plan, said.append)
    assert said == ["version iris 1 stays: it is in use now."]
    assert [v.number for v in full.records.versions()] == [1, 3, 4]


def test_an_endpoint_that_is_being_changed_keeps_its_versions(full):
    said: list[str] = []
    plan = prune.plan(full)
    with full.home.lock(full.endpoint("iris").endpoint.id):
        prune.carry_out(full, plan, said.append)
    assert said == [f"version iris {n} stays: its endpoint is being changed." for n in (1, 2)]


def test_the_command_shows_and_removes_only_when_told(full, capsys):
    assert main(["prune"]) == 0
    out = capsys.readouterr().out
    assert "mlflow-domino prune --yes" in out
    assert len(full.records.versions()) == 4
    assert main(["prune", "--yes", "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert all(document["removed"] for document in documents)
    assert len(full.records.versions()) == 2
    assert main(["prune"]) == 0
    assert "nothing to remove" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 << 20, "20 MiB"), (5000 << 30, "5000 GiB")]
)
def test_sizes_are_readable(size, text):
    assert prune.readable(size) == text
