"""Both that build images: the container engine, and buildah where there is none."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.buildah import Buildah
from mlflow_domino.builder import Builder, builder_of
from mlflow_domino.engine import Engine
from mlflow_domino.errors import DominoError, Unavailable
from tests.builders import BuilderContract


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Buildah with a store of its own; nothing of it is left."""
    folder = tmp_path_factory.mktemp("buildah")
    settings = folder / "storage.conf"
    lines = ["[storage]", 'driver = "vfs"', f'graphroot = "{folder}/graph"', f'runroot = "{folder}/run"']
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


class TestEngine(BuilderContract):
    @pytest.fixture(scope="class")
    def builder(self, engine: Engine) -> Builder:
        return engine


class TestBuildah(BuilderContract):
    @pytest.fixture(scope="class")
    def builder(self, buildah: Buildah) -> Builder:
        return buildah


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody at the engine's socket, where Docker's client leaves one unclosed."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


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
