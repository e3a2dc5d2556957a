"""What everything that builds images must do; `tests/docker` runs it with a container engine and with buildah."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mlflow_domino.builder import Builder
from mlflow_domino.context import Entry, context
from mlflow_domino.errors import DominoError, EnvironmentFailed, Failed, NotFound, Unavailable
from tests.registry import PASSWORD, USER, Registry, registry

NAME = "mlflow-domino-test/builders"


def shell() -> list[Entry]:
    """Return a shell, and the libraries that it needs, as members of a context: an image of it needs no other."""
    listed = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout
    files = ["/bin/sh", *re.findall(r"(/\S+) \(0x", listed)]
    return [Entry(f"root{name}", path=Path(os.path.realpath(name)), program=True) for name in files]


class Made:
    """Images that tests make, removed with them."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.said: list[str] = []
        self._names: list[str] = []

    def __call__(
        self, tag: str, recipe: str, *members: Entry, log: Callable[[str], None] | None = None, **arguments: str
    ) -> str:
        """Build an image, and return its name."""
        archive = io.BytesIO()
        context([Entry("Dockerfile", content=recipe.encode()), *members], archive)
        archive.seek(0)
        with _file(archive.getvalue()) as file:
            self.builder.build(file, self.named(f"{NAME}:{tag}"), arguments=arguments, log=log or self.said.append)
        return f"{NAME}:{tag}"

    def named(self, name: str) -> str:
        self._names.append(name)
        return name

    def clean(self) -> None:
        for name in reversed(self._names):
            self.builder.remove_image(name)


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[io.BufferedRandom]:
    import tempfile

    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file  # type: ignore[misc]


class BuilderContract:
    """Subclasses give a `builder` fixture, or skip."""

    @pytest.fixture(scope="class")
    def small(self, builder: Builder) -> Iterator[str]:
        """An image with a shell in it."""
        made = Made(builder)
        yield made("small", "FROM scratch\nCOPY root/ /\nUSER 1234:1234\n", *shell())
        made.clean()

    @pytest.fixture
    def made(self, builder: Builder) -> Iterator[Made]:
        made = Made(builder)
        yield made
        made.clean()

    @pytest.fixture(scope="class")
    def open_registry(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
        with registry(tmp_path_factory.mktemp("registry")) as running:
            yield running

    @pytest.fixture(scope="class")
    def closed_registry(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
        with registry(tmp_path_factory.mktemp("registry"), closed=True) as running:
            yield running

    def test_it_says_what_it_is(self, builder: Builder) -> None:
        assert re.search(r"\d+\.\d+", builder.check())

    def test_what_is_not_here_is_none(self, builder: Builder) -> None:
        assert builder.image("mlflow-domino-test/nothing:1") is None
        assert builder.image(f"sha256:{'0' * 64}") is None
        assert builder.images("mlflow-domino-test/nothing") == []
        builder.remove_image("mlflow-domino-test/nothing:1")

    def test_what_was_built_is_here_by_name_and_by_id(self, builder: Builder, made: Made, small: str) -> None:
        tag = made("child", "ARG BASE\nFROM ${BASE}\nCOPY a /a\n", Entry("a", content=b"x"), BASE=small)
        base, child = builder.image(small), builder.image(tag)
        assert base is not None
        assert child is not None
        assert child.layers[: len(base.layers)] == base.layers
        assert len(child.layers) > len(base.layers)
        assert child.size >= base.size > 100_000
        assert builder.image(child.id) == child
        assert any(child.names == image.names and image.id == child.id for image in builder.images(NAME))
        assert tag in child.names
        again = made("again", "ARG BASE\nFROM ${BASE}\nCOPY a /a\n", Entry("a", content=b"x"), BASE=base.id)
        assert builder.image(again) is not None

    def test_an_image_that_goes_takes_no_layer_of_one_that_is_being_built(
        self, builder: Builder, made: Made, small: str
    ) -> None:
        recipe, common = f"FROM {small}\nCOPY common /common\nCOPY own /own\n", Entry("common", content=os.urandom(8))
        first = made("first", recipe, common, Entry("own", content=b"1"))

        def remove_the_first(line: str) -> None:
            if "Using cache" in line:
                builder.remove_image(first)

        own = os.urandom(40_000_000)  # takes a moment, in which the other image goes
        second = made("second", recipe, common, Entry("own", content=own), log=remove_the_first)
        with _folder() as folder:
            builder.extract(second, "/", folder)
            assert (folder / "common").read_bytes() == common.content
            assert (folder / "own").read_bytes() == own

    def test_when_an_image_was_built_is_known(self, builder: Builder, made: Made, small: str) -> None:
        import time

        before = time.time()
        made("timed", f"FROM {small}\nCOPY a /a\n", Entry("a", content=os.urandom(8)))
        image = builder.image(f"{NAME}:timed")
        assert image is not None
        assert before - 2 <= image.built_s <= time.time() + 2

    def test_a_program_runs_as_the_images_own_user_and_its_failure_is_told(self, builder: Builder, small: str) -> None:
        printed = builder.run(small, ["/bin/sh", "-c", 'while read -r line; do echo "$line"; done </proc/self/status'])
        assert re.search(r"^Uid:\s+1234\s", printed, re.MULTILINE)
        with pytest.raises(Failed, match="no such weights"):
            builder.run(small, ["/bin/sh", "-c", "echo no such weights >&2; exit 3"])
        with pytest.raises(Failed, match=r"executable file not found|no such file"):
            builder.run(small, ["python3", "-c", "pass"])

    def test_a_build_that_fails_gives_the_end_of_its_log(self, builder: Builder, made: Made, small: str) -> None:
        with pytest.raises(EnvironmentFailed) as caught:
            made("failing", f"FROM {small}\nRUN echo cannot make it >&2; exit 7\n")
        assert "cannot make it" in str(caught.value)
        assert builder.image(f"{NAME}:failing") is None
        with pytest.raises(EnvironmentFailed, match=r"COPY|absent"):
            made("failing", f"FROM {small}\nCOPY absent /a\n")

    def test_builds_are_given_no_variables_of_ours(
        self, builder: Builder, made: Made, small: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://ada:s3cr3t-proxy@127.0.0.1:1")
        monkeypatch.setenv("DOMINO_TEST_SECRET", "s3cr3t-variable")
        made("clean", f"FROM {small}\nUSER 0\nRUN export -p >/variables; export -p\n")
        with _folder() as folder:
            builder.extract(f"{NAME}:clean", "/", folder)
            assert "s3cr3t" not in (folder / "variables").read_text()
        assert "s3cr3t" not in "".join(made.said)

    def test_a_folder_comes_out_of_an_image(self, builder: Builder, made: Made, small: str, tmp_path: Path) -> None:
        members = [
            Entry("source/model.py", content=b"x = 1\n"),
            Entry("source/run", content=b"#!/bin/sh\n", program=True),
            Entry("source/deep/er/file", content=b"d"),
            Entry("source/inner", link="deep/er/file"),
            Entry("source/outer", link="/etc/passwd"),
            Entry("source/upper", link="../../../etc"),
            Entry("source/empty", folder=True),
        ]
        tag = made("project", f"FROM {small}\nCOPY --chown=12574:12574 source/ /mnt/ada/engine/\n", *members)
        builder.extract(tag, "/mnt/ada/engine", tmp_path)
        found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
        assert found == ["deep", "deep/er", "deep/er/file", "empty", "inner", "model.py", "run"]
        assert (tmp_path / "inner").read_text() == "d"
        assert os.access(tmp_path / "run", os.X_OK)
        assert not os.access(tmp_path / "model.py", os.X_OK)
        assert {path.lstat().st_uid for path in tmp_path.rglob("*")} == {os.getuid()}
        with pytest.raises(NotFound):
            builder.extract(tag, "/mnt/nobody", tmp_path)
        with pytest.raises(NotFound):
            builder.extract("mlflow-domino-test/nothing:1", "/mnt", tmp_path)

    def test_an_image_travels_by_a_registry(
        self, builder: Builder, made: Made, small: str, open_registry: Registry
    ) -> None:
        reference = made.named(f"{open_registry.host}/team/small:1")
        before = builder.image(small)
        builder.tag(small, reference)
        digest = builder.push(reference, made.said.append)
        assert digest == open_registry.digest("team/small", "1")
        assert re.fullmatch("sha256:[0-9a-f]{64}", digest)
        builder.remove_image(reference)
        assert builder.image(reference) is None
        pulled = builder.pull(reference, made.said.append)
        assert before is not None
        assert pulled.id == before.id
        assert builder.pull(f"{open_registry.host}/team/small@{digest}", made.said.append).id == before.id
        made.named(f"{open_registry.host}/team/small@{digest}")

    def test_what_a_registry_does_not_have_is_named(self, builder: Builder, open_registry: Registry) -> None:
        with pytest.raises(EnvironmentFailed, match=f"{open_registry.host}/team/absent:1 .*cannot be pulled"):
            builder.pull(f"{open_registry.host}/team/absent:1", lambda _line: None)

    def test_a_registry_that_does_not_answer_is_named(self, builder: Builder, made: Made, small: str) -> None:
        reference = made.named("localhost:1/team/small:1")
        builder.tag(small, reference)
        with pytest.raises(Unavailable, match="registry localhost:1 does not answer"):
            builder.push(reference, made.said.append)
        with pytest.raises(EnvironmentFailed, match="localhost:1/team/other:1"):
            builder.pull("localhost:1/team/other:1", made.said.append)

    def test_a_registry_is_told_the_password_and_nobody_else_is(
        self, builder: Builder, made: Made, small: str, closed_registry: Registry
    ) -> None:
        tag = made("secret", f"FROM {small}\nCOPY a /a\n", Entry("a", content=os.urandom(8 << 20)))
        reference = made.named(f"{closed_registry.host}/team/secret:1")
        builder.tag(tag, reference)
        with pytest.raises(Failed, match=f"{closed_registry.host} refuses the push of {reference}.*login"):
            builder.push(reference, made.said.append)
        with pytest.raises(Failed, match="refuses the push") as caught:
            builder.push(reference, made.said.append, user=(USER, "wrong-passw0rd"))
        assert "wrong-passw0rd" not in str(caught.value)
        with watched_processes() as seen:
            assert builder.push(reference, made.said.append, user=(USER, PASSWORD))
        assert closed_registry.digest("team/secret", "1")
        assert PASSWORD not in "".join(seen)
        assert PASSWORD not in "\n".join(made.said)
        with pytest.raises(DominoError, match="refuses"):  # it was not kept
            builder.push(reference, made.said.append)

    def test_what_docker_login_wrote_down_counts(
        self,
        builder: Builder,
        made: Made,
        small: str,
        closed_registry: Registry,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        words = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {closed_registry.host: {"auth": words}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        fresh = type(builder)()
        reference = made.named(f"{closed_registry.host}/team/known:1")
        fresh.tag(small, reference)
        assert fresh.push(reference, made.said.append)
        fresh.remove_image(reference)
        assert fresh.pull(reference, made.said.append)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))
        with pytest.raises(EnvironmentFailed, match=r"team/other:1 .*cannot be pulled.*login"):
            type(builder)().pull(f"{closed_registry.host}/team/other:1", made.said.append)


@contextlib.contextmanager
def watched_processes() -> Iterator[set[str]]:
    """Collect the command lines of all processes, again and again until the block ends."""
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    seen.add(" ".join(process.cmdline()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
