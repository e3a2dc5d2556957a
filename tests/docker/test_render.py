"""What `mlflow-domino render` writes of images: all that they are built of, on a machine that may have no engine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from mlflow_domino import render
from mlflow_domino.engine import Engine
from tests.conftest import eventually, free_port
from tests.contract import ECHO
from tests.deployment import Deployment
from tests.docker.test_faults import answers, docker

NAME = "mlflow-domino-test/rendered:1"


@pytest.fixture
def nobody(no_engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an engine that answers nor a program that builds; only uv."""
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))


def test_render_writes_recipes_containers_and_routes_without_secrets(deployment: Deployment, tmp_path: Path) -> None:
    project = deployment.project(tmp_path / "p", ECHO, VALUE=1)
    config = {
        "file": "model.py",
        "environment": "registry.example.com/team/image:1,pandas",
        "env.KEY": "s3cr3t-variable",
        "replicas": 2,
    }
    said: list[str] = []
    files = render.write(deployment.controller, tmp_path / "out", "shown", project, config, log=said.append)
    assert {"container-0.json", "container-1.json", "harness.json", "dockerfiles/endpoint/Dockerfile"} <= set(files)
    assert "dockerfiles/build.sh" not in files
    assert "registry.example.com/team/image:1 is not on this machine" in said[-1]
    assert "pandas" in (tmp_path / "out" / "requirements.in").read_text()
    written = "".join(path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert "s3cr3t-variable" not in written


def test_the_context_is_that_of_create_and_any_builder_makes_the_image_of_it(
    deployment: Deployment, engine: Engine, tmp_path: Path
) -> None:
    project = deployment.project(tmp_path / "p", ECHO, VALUE="rendered")
    deployment.create("beside", project)
    render.write(deployment.controller, tmp_path / "out", "shown", project, {"file": "model.py"})
    script = tmp_path / "out" / "dockerfiles" / "build.sh"
    packages = script.read_text().split(" -t ")[1].split()[0]
    assert engine.image(packages) is not None  # named by its content, as that of `create`
    with built(script, "docker") as image:
        port = free_port()
        made = docker("run", "-d", "-p", f"127.0.0.1:{port}:8080", "-e", "DOMINO_AUTH=none", image).strip()
        try:
            eventually(lambda: answers(f"http://127.0.0.1:{port}"), within=20, every=0.1)
            answer = requests.post(f"http://127.0.0.1:{port}/model", json={"data": {}}, timeout=5)
            assert answer.json()["result"] == "rendered"
        finally:
            docker("rm", "-f", made)


@pytest.mark.usefixtures("nobody")
def test_no_engine_is_needed_and_none_makes_no_difference(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = deployment.project(tmp_path / "p", ECHO, VALUE=1)
    config = {"file": "model.py", "environment": "six==1.16.0"}
    without = contents(deployment, tmp_path / "without", project, config)
    monkeypatch.undo()
    assert without == contents(deployment, tmp_path / "with", project, config)
    assert {
        f"packages/packages/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/six.py",
        "endpoint/source/model.py",
    } <= without.keys()
    assert any(name.startswith("endpoint/harness/") for name in without)


@pytest.mark.usefixtures("nobody")
def test_an_interpreter_that_seldon_core_needs_comes_out_of_an_image_that_must_be_here(
    deployment: Deployment, tmp_path: Path
) -> None:
    project, said = deployment.project(tmp_path / "p", ECHO, VALUE=1), []
    config = {"file": "model.py", "is_async": True, "python_version": "3.13"}
    render.write(deployment.controller, tmp_path / "out", "shown", project, config, log=said.append)
    assert "is not on this machine" in said[-1]
    assert "Start Docker" in said[-1]
    assert not (tmp_path / "out" / "dockerfiles" / "packages" / "packages").exists()


def contents(deployment: Deployment, folder: Path, project: str, config: dict[str, str]) -> dict[str, bytes | str]:
    """Render; return the contexts by their files, but for where the interpreter is, and what the version is called.

    An image that is called as an official one may be somebody's own on a machine of tests.
    """
    render.write(deployment.controller, folder, "shown", project, config)
    root = folder / "dockerfiles"
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_symlink() or path.is_file()}
    own = ("build.sh", "endpoint/harness.json", "packages/packages/pyvenv.cfg", "packages/packages/bin/python")
    return {n: os.readlink(p) if p.is_symlink() else p.read_bytes() for n, p in files.items() if n not in own}


@contextlib.contextmanager
def built(script: Path, builder: str) -> Iterator[str]:
    environment = {**os.environ, "BUILDER": builder, "DOCKER_BUILDKIT": "0"}
    subprocess.run(["sh", str(script), NAME], env=environment, check=True, capture_output=True)
    try:
        yield NAME
    finally:
        subprocess.run([builder, "rmi", "-f", NAME], check=True, capture_output=True)
