"""Requests a second through the gateway, beside `mlflow models serve`: same model, same workers, one row a request.

    python -m tests.benchmarks.serving [--workers 2] [--connections 16] [--seconds 8] [--rounds 3]

The sides take turns, so that a machine whose speed drifts slows both; the ratio of medians is printed last.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from mlflow_domino.controller import Controller
from mlflow_domino.home import Home
from tests.benchmarks.generator import run
from tests.conftest import free_port

ROW = {"sepal length (cm)": 6.3, "sepal width (cm)": 2.7, "petal length (cm)": 4.9, "petal width (cm)": 1.8}


def train(folder: Path) -> str:
    """Save a logistic regression of iris as MLflow does by default, and return its folder."""
    import mlflow
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    frame, labels = load_iris(as_frame=True, return_X_y=True)
    model = LogisticRegression(max_iter=1000).fit(frame, labels)
    mlflow.sklearn.save_model(model, folder / "model", input_example=frame.head(2))
    return str(folder / "model")


@contextlib.contextmanager
def mlflow_serve(model: str, workers: int) -> Iterator[str]:
    """Serve with MLflow's own server, in this very environment."""
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        model,
        "-p",
        str(port),
        "-w",
        str(workers),
        "--env-manager",
        "local",
    ]
    log = tempfile.TemporaryFile()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it runs `uvicorn` by name
    server = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "PATH": path})
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                break
            assert server.poll() is None, "mlflow models serve ended"
            assert time.monotonic() < deadline, "mlflow models serve does not answer"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
        log.close()


@contextlib.contextmanager
def domino(model: str, folder: Path, **config: object) -> Iterator[tuple[str, str]]:
    """Deploy with this package, in a home of its own; environments are shared with the user's."""
    home = Home(folder / "home")
    home.root.mkdir()
    shared = Home.find()
    shared.environments.mkdir(parents=True, exist_ok=True)
    home.environments.symlink_to(shared.environments)
    home.config.write_text(f"[data_planes.local]\nport = {free_port()}\n")
    controller = Controller.open(home=home, say=lambda line: print(f"  {line}", file=sys.stderr))
    try:
        view, token = controller.create("bench", model, config)
        yield view.url, token
    finally:
        controller.delete("bench")
        controller.down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = train(folder)
        with (
            mlflow_serve(model, options.workers) as theirs,
            domino(model, folder, workers=options.workers) as (ours, token),
        ):
            compare(theirs, ours, token, options)
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)


def compare(theirs: str, ours: str, token: str, options: argparse.Namespace) -> None:
    basic = base64.b64encode(f"{token}:{token}".encode()).decode()
    authorization = {"Authorization": f"Basic {basic}"}
    rates: dict[str, list[float]] = {"mlflow models serve": [], "domino": []}
    for round_ in range(options.rounds + 1):
        seconds = options.seconds if round_ else 2.0
        sides = {
            "mlflow models serve": (theirs, {"dataframe_records": [ROW]}, {}),
            "domino": (ours, {"data": ROW}, authorization),
        }
        for side, (url, body, headers) in sides.items():
            outcome = run(url, body, headers=headers, connections=options.connections, seconds=seconds)
            if round_:  # the first round only warms up
                rates[side].append(outcome.rate)
                print(f"{side:22} {outcome}", flush=True)
    medians = {side: statistics.median(values) for side, values in rates.items()}
    print(f"ratio of medians: {medians['domino'] / medians['mlflow models serve']:.2f}")


if __name__ == "__main__":
    main()
