"""Both that build images: the container engine, and buildah where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from mlflow_domino import source
from mlflow_domino.buildah import Buildah
from mlflow_domino.builder import Builder, builder_of
from mlflow_domino.config import Secrets, parse
from mlflow_domino.data_planes.assembly import Assembly
from mlflow_domino.engine import Engine
from mlflow_domino.errors import DominoError, Unavailable
from mlflow_domino.home import Home
from mlflow_domino.models import Version, new_id
from tests.builders import BuilderContract
from tests.conftest import eventually
from tests.packages import Index, make_harness
from tests.registry import Registry, registry

BASE = "python:3.11-slim-bookworm"
DOCKERFILES = Path(__file__).resolve().parents[2] / "dockerfiles"


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Buildah with a store of its own; nothing of it is left."""
    if shutil.which("buildah") is None:
        pytest.skip("no buildah: apt install buildah")
    folder = tmp_path_factory.mktemp("buildah")
    settings = folder / "storage.conf"
    lines = ["[storage]", f'driver = "{_driver()}"', f'graphroot = "{folder}/graph"', f'runroot = "{folder}/run"']
    if os.geteuid():
        lines.append(f'rootless_storage_path = "{folder}/graph"')
    settings.write_text("\n".join(lines) + "\n")
    before = os.environ.get("CONTAINERS_STORAGE_CONF")
    os.environ["CONTAINERS_STORAGE_CONF"] = str(settings)
    try:
        builder = Buildah()
        try:
            builder.check()
        except DominoError as error:
            pytest.skip(str(error))
        yield builder
        assert builder._said("containers", "--quiet") == ""
    finally:
        if before is None:
            del os.environ["CONTAINERS_STORAGE_CONF"]
        else:
            os.environ["CONTAINERS_STORAGE_CONF"] = before


def _driver() -> str:
    """Return how buildah would keep images here, had nobody told it."""
    done = subprocess.run(["buildah", "info"], capture_output=True, text=True)
    return str(json.loads(done.stdout)["store"]["GraphDriverName"]) if done.returncode == 0 else "vfs"


class TestEngine(BuilderContract):
    @pytest.fixture(scope="class")
    def builder(self, engine: Engine) -> Builder:
        return engine


class TestBuildah(BuilderContract):
    @pytest.fixture(scope="class")
    def builder(self, buildah: Buildah) -> Builder:
        return buildah


def test_the_engine_is_preferred(engine: Engine) -> None:
    assert isinstance(builder_of(), Engine)


@pytest.mark.usefixtures("no_engine")
def test_buildah_is_the_way_without_an_engine(buildah: Buildah) -> None:
    assert isinstance(builder_of(), Buildah)


@pytest.mark.usefixtures("no_engine")
def test_without_either_both_ways_out_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"Start Docker.*apt install buildah"):
        builder_of()


@pytest.fixture
def base(engine: Engine, tmp_path: Path) -> Iterator[tuple[Registry, str]]:
    """A registry that has the base image, and the image's name there."""
    with registry(tmp_path / "registry") as running:
        reference = f"{running.host}/python:{{python}}"
        engine.tag(BASE, reference.format(python="3.11"))
        try:
            engine.push(reference.format(python="3.11"), lambda _line: None)
        finally:
            engine.remove_image(reference.format(python="3.11"))
        yield running, reference


def test_a_version_that_is_built_without_an_engine_runs_elsewhere_and_its_project_comes_back(
    buildah: Buildah, engine: Engine, base: tuple[Registry, str], tmp_path: Path, shared_environments: Path
) -> None:
    running, reference = base
    project = tmp_path / "project"
    (project / "empty").mkdir(parents=True)
    (project / "model.py").write_text("import os\ndef predict(x):\n    return [x * 2, os.getcwd(), os.getuid()]\n")
    home, other = Home(tmp_path / "home"), Home(tmp_path / "other")
    for one in (home, other):
        one.root.mkdir()
        one.environments.symlink_to(shared_environments)
    settings = parse({"file": "model.py", "python_version": "3.11", "username": "ada", "project": "engine"})[0]
    version_id = new_id()
    fetched = source.fetch(str(project), settings, home.version(version_id), lambda _line: None)
    version = Version(version_id, new_id(), 1, 0, fetched, settings)
    said: list[str] = []
    assembly = Assembly(home, lambda: buildah, reference)
    version = replace(
        version, artifact=assembly.build(version, Secrets(), said.append, registry=f"{running.host}/models")
    )
    assert version.artifact is not None
    image = version.artifact.environment
    assert image.startswith(f"{running.host}/models/")
    assembly.discard(version)
    assert Assembly(other, lambda: buildah, reference).restore(version, said.append)
    again = source.again(other.version(version_id), fetched, settings, tmp_path / "again")
    assert again == fetched
    buildah.remove_image(image)
    engine.pull(image, said.append)
    try:
        made = _docker("run", "-d", "-p", "127.0.0.1::8080", "-e", "DOMINO_AUTH=none", image)
        try:
            url = f"http://{_docker('port', made, '8080')}"
            eventually(lambda: _ready(url), within=30, every=0.1)
            answer = requests.post(f"{url}/model", json={"data": {"x": 21}}, timeout=5)
            assert answer.json()["result"] == [42, "/mnt/ada/engine", 12574]
        finally:
            _docker("rm", "-f", made)
    finally:
        engine.remove_image(image)
    before = len(said)
    assembly.build(version, Secrets(), said.append)
    assert not [line for line in said[before:] if "packages" in line and line.startswith("building")]


def test_build_secrets_are_in_no_layer_of_an_environment(
    buildah: Buildah, base: tuple[Registry, str], tmp_path: Path
) -> None:
    _running, reference = base
    found = buildah.pull(reference.format(python="3.11"), lambda _line: None)
    buildah.tag(found.id, BASE)
    with Index(make_harness(tmp_path / "wheels"), user="ada:s3cr3t-index") as index:
        settings = tmp_path / "pip.conf"
        settings.write_text(f"[global]\nindex-url = {index.url('ada:s3cr3t-index')}\n")
        tag, out = "localhost/domino-minimal:3.11", tmp_path / "out"
        arguments = [f"--build-arg={name}=9.0" for name in ("PYUWSGI", "FLASK", "SIX", "PROMETHEUS_CLIENT")]
        secret, folder = f"--secret=id=pip,src={settings}", DOCKERFILES / "environments" / "minimal"
        _buildah("build", "--isolation=chroot", "--pull-never", secret, *arguments, "--tag", tag, str(folder))
        _buildah("push", "--disable-compression", tag, f"dir:{out}")
    assert buildah.run(tag, ["python3", "-c", "import flask; print(flask.version)"]).strip() == "9.0"
    for path in out.iterdir():
        assert b"s3cr3t-index" not in path.read_bytes(), path.name
    for name in (tag, BASE, reference.format(python="3.11")):
        buildah.remove_image(name)


def _docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


def _buildah(*words: str) -> None:
    done = subprocess.run(["buildah", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout


def _ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/ready", timeout=2).ok
    except requests.RequestException:
        return False
