"""The systems that are compared: each starts, says where requests go, and is ended whatever happens."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mlflow_domino.controller import Controller
from mlflow_domino.home import Home
from tests.benchmarks.generator import Target, load
from tests.benchmarks.models import Model
from tests.conftest import free_port, processes_of
from tests.replica import UnixConnection

__all__ = ["PEERS", "Domino", "Side", "basic", "domino", "environment", "family", "mlflow_serve", "running"]

_APPS = Path(__file__).parent / "apps"
#: What loads the models, in the releases that saved them.
_LIBRARIES = ("mlflow", "scikit-learn", "lightgbm", "numpy", "pandas")
#: As our launcher does: with two workers on two cores more threads would only be in each other's way.
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_START_S = 180


@dataclass(frozen=True)
class Side:
    """A running system.

    Attributes
    ----------
    holds : bytes
        What an answer holds that is right.
    processes : callable
        Returns the processes that it is made of now.
    restless : bool
        Whether it takes processor time while nobody asks it; it is suspended then, so that it slows none of the others.
    """

    target: Target
    body: Any
    holds: bytes
    processes: Callable[[], list[psutil.Process]]
    restless: bool = False

    def cpu_s(self) -> float:
        """Processor time so far, that of processes which have ended included."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
        return total


# ---- ours ------------------------------------------------------------------------------------------------------------


class Domino:
    """Endpoints of this package in a home of its own; environments are shared with the user's.

    Use `domino`, which ends everything.
    """

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home")
        self.home.root.mkdir()
        shared = Home.find()
        shared.environments.mkdir(parents=True, exist_ok=True)
        self.home.environments.symlink_to(shared.environments)
        self.home.config.write_text(f"[data_planes.local]\nport = {free_port()}\n")
        self.controller = Controller.open(home=self.home, say=lambda line: print(f"  {line}", file=sys.stderr))

    def deploy(self, name: str, model: Model, **settings: Any) -> tuple[Side, Side]:
        """Return the replica itself, on its socket, and the same through the gateway."""
        replica = self.deploy_path(name, model.path, **settings)
        replica = dataclasses.replace(replica, body=model.domino(), holds=b'"result":[%d]' % model.answer)
        url = urllib.parse.urlsplit(self.controller.endpoint(name).url)
        gateway = Target((url.hostname or "", url.port or 80), url.path, replica.target.headers)
        return replica, dataclasses.replace(replica, target=gateway, processes=lambda: processes_of(self.home))

    def deploy_path(self, name: str, path: Path, **settings: Any) -> Side:
        """Return the replica of a model that the caller knows."""
        view, token = self.controller.create(name, str(path), settings)
        version = view.endpoint.latest
        assert version is not None
        replica = Target(str(self.home.run / "s" / f"{version}-0"), "/model", basic(token), closes=True)
        return Side(replica, None, b"", lambda: self.replica(version))

    def replica(self, version: str) -> list[psutil.Process]:
        """Return uWSGI's master and its workers."""
        status = self.home.version(version) / "replicas" / "0" / "status.json"
        return family(json.loads(status.read_text())["pid"])

    def metrics(self, side: Side) -> dict[str, float]:
        """Return a replica's own metrics, by name and labels."""
        assert isinstance(side.target.address, str)
        connection = UnixConnection(side.target.address, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics", headers=dict(side.target.headers))
            lines = connection.getresponse().read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def end(self) -> None:
        for view in self.controller.endpoints():
            self.controller.delete(view.endpoint.name)
        self.controller.down()


def basic(token: str) -> dict[str, str]:
    """Return the header that Domino's callers send."""
    return {"Authorization": f"Basic {base64.b64encode(f'{token}:{token}'.encode()).decode()}"}


@contextlib.contextmanager
def domino(folder: Path) -> Iterator[Domino]:
    ours = Domino(folder)
    try:
        yield ours
    finally:
        ours.end()


# ---- the others ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mlflow_serve(model: Model, folder: Path, workers: int) -> Iterator[Side]:
    """`mlflow models serve`, in this very environment; it has nothing to set but the workers."""
    port = free_port()
    argv = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model.path), "-p", str(port),
            "-w", str(workers), "--env-manager", "local"]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it runs `uvicorn` by name
    target = Target(("127.0.0.1", port), "/invocations")
    with running(argv, folder, {"PATH": path}) as processes:
        yield _answering(Side(target, model.mlflow(), b'"predictions": [%d]' % model.answer, processes))


@contextlib.contextmanager
def mlserver(model: Model, folder: Path, workers: int, batch: int) -> Iterator[Side]:
    """MLServer with its MLflow runtime and adaptive batching.

    https://docs.seldon.ai/mlserver/user-guide/adaptive-batching
    """
    programs = environment("mlserver", "mlserver==1.7.1", "mlserver-mlflow==1.7.1", "uvloop<0.22")
    port = free_port()
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
                "parallel_workers": workers, "debug": False}  # fmt: skip
    own = {"name": "model", "implementation": "mlserver_mlflow.MLflowRuntime", "max_batch_size": batch,
           "max_batch_time": 0.005, "parameters": {"uri": str(model.path)}}  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(own))
    target = Target(("127.0.0.1", port), "/v2/models/model/infer")
    with running([str(programs / "mlserver"), "start", "."], folder) as processes:
        yield _answering(Side(target, model.open_inference(), b'"data":[%d]' % model.answer, processes))


@contextlib.contextmanager
def litserve(model: Model, folder: Path, workers: int, batch: int) -> Iterator[Side]:
    """LitServe with batching, one process for HTTP and `workers` for the model."""
    programs = environment("litserve", "litserve==0.2.19")
    port = free_port()
    argv = [
        str(programs / "python"),
        str(_APPS / "lit.py"),
        str(model.path),
        str(port),
        str(workers),
        str(batch),
        "0.005",
    ]
    target = Target(("127.0.0.1", port), "/predict")
    with running(argv, folder) as processes:
        yield _answering(Side(target, {"row": model.row}, b'{"prediction":%d}' % model.answer, processes))


@contextlib.contextmanager
def bentoml(model: Model, folder: Path, workers: int, batch: int) -> Iterator[Side]:
    """BentoML with adaptive batching, `workers` processes of HTTP and model."""
    programs = environment("bentoml", "bentoml==1.4.39")
    port = free_port()
    variables = {"BENCHMARK_MODEL": str(model.path), "BENCHMARK_WORKERS": str(workers), "BENCHMARK_BATCH": str(batch),
                 "BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "true"}  # fmt: skip
    argv = [str(programs / "bentoml"), "serve", "bento:Classifier", "--host", "127.0.0.1", "--port", str(port),
            "--working-dir", str(_APPS)]  # fmt: skip
    target = Target(("127.0.0.1", port), "/predict")
    with running(argv, folder, {**variables, "PYTHONDONTWRITEBYTECODE": "1"}) as processes:
        yield _answering(Side(target, {"rows": [model.row]}, b"[%d]" % model.answer, processes))


Peer = Callable[[Model, Path, int, int], contextlib.AbstractContextManager[Side]]
#: Those that join requests, by name; the last argument is how many at most.
PEERS: Mapping[str, Peer] = {
    "MLServer": mlserver,
    "LitServe": litserve,
    "BentoML": bentoml,
}


# ---- inside ----------------------------------------------------------------------------------------------------------


def environment(name: str, *requirements: str, libraries: Sequence[str] = _LIBRARIES) -> Path:
    """Return the programs' folder of a virtual environment with these packages, made on first use."""
    from uv import find_uv_bin

    wanted = [*requirements, *(f"{package}=={importlib.metadata.version(package)}" for package in libraries)]
    digest = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlflow-domino-benchmarks"
    folder = cache / f"{name}-{digest}"
    if not (folder / "complete").exists():
        print(f"  making an environment for {name} …", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        _say_and_run([find_uv_bin(), "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
        python = str(folder / "bin" / "python")
        _say_and_run([find_uv_bin(), "pip", "install", "--quiet", "--python", python, *wanted])
        (folder / "complete").touch()
    return folder / "bin"


def _say_and_run(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}\n{done.stdout}")


@contextlib.contextmanager
def running(
    argv: Sequence[str], folder: Path, variables: Mapping[str, str] = {}
) -> Iterator[Callable[[], list[psutil.Process]]]:
    """Run a server in its folder, in a session of its own; nothing of it is left afterwards."""
    environment = {**os.environ, **_THREADS, "MLFLOW_DISABLE_TELEMETRY": "true", **variables}
    environment["PATH"] = f"{Path(argv[0]).parent}:{environment['PATH']}"
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            argv, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    try:
        yield lambda: family(server.pid)
    except Exception:
        print(f"{argv[0]}: the end of its log\n{(folder / 'log').read_text('utf-8', 'replace')[-3000:]}")
        raise
    finally:
        members = family(server.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        _gone, left = psutil.wait_procs(members, timeout=10)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        server.wait(10)


def family(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _answering(side: Side) -> Side:
    """Wait until a server gives the right answer."""
    deadline = time.monotonic() + _START_S
    while True:
        outcome = load(side.target, side.body, holds=side.holds, connections=1, seconds=0.2)
        if outcome.statuses["200"]:
            return side
        assert side.processes(), f"the server ended: {dict(outcome.statuses)}"
        assert time.monotonic() < deadline, f"no right answer within {_START_S} s: {dict(outcome.statuses)}"
        time.sleep(0.2)
