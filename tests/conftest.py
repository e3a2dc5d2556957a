from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

for _shared in ("asynchronous", "builders", "contract", "interrupted", "messages", "queue", "records", "replica"):
    pytest.register_assert_rewrite(f"tests.{_shared}")  # before anything imports them, or a failure says nothing

from mlflow_domino.controller import Controller  # noqa: E402
from mlflow_domino.home import Home  # noqa: E402
from tests.deployment import Deployment  # noqa: E402


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let the tests' children be interrupted, even when a shell put the tests into the background: they inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _tracking(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep MLflow from writing its records into the checkout."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def shared_environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Environments that all tests of a run share: building each anew would test uv, and take minutes."""
    return tmp_path_factory.mktemp("environments")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, shared_environments: Path) -> Iterator[Home]:
    """A home with a gateway on a free port; everything of it is ended afterwards, and nothing may be left."""
    home = Home(tmp_path_factory.mktemp("home"))
    (home.root / "config.toml").write_text(f"[data_planes.local]\nport = {free_port()}\n")
    home.environments.symlink_to(shared_environments)
    before = os.environ.get("MLFLOW_DOMINO_HOME")
    os.environ["MLFLOW_DOMINO_HOME"] = str(home.root)
    yield home
    Controller.open(home=home, recover=False).down()
    if before is None:
        del os.environ["MLFLOW_DOMINO_HOME"]
    else:
        os.environ["MLFLOW_DOMINO_HOME"] = before
    deadline = time.monotonic() + 10
    while (left := processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"left behind: {[p.cmdline() for p in left]}"


@pytest.fixture
def deployment(home: Home) -> Iterator[Deployment]:
    """Verbs on endpoints of the home; those that the test made are deleted afterwards."""
    deployment = Deployment(home)
    yield deployment
    deployment.clean()


def processes_of(home: Home) -> list[psutil.Process]:
    """Every process whose command line, folder or environment names the home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            words = [
                *process.cmdline(),
                process.cwd(),
                *(v for k, v in process.environ().items() if k.startswith("DOMINO_")),
            ]
        except psutil.Error:
            continue
        if any(str(home.root) in word or str(home.run) in word for word in words):
            found.append(process)
    return found


def eventually(condition: Callable[[], object], *, within: float = 10.0, every: float = 0.02) -> None:
    """Wait until something holds; fail with what it last was."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return
        assert time.monotonic() < deadline, f"not within {within} s: {value!r}"
        time.sleep(every)
