"""What our build adds to the base image, beside what MLflow's own recipe adds for the same model.

    python -m tests.benchmarks.images [--model iris|trees|network] [--base python:3.11-slim-bookworm]

MLflow's side is the Dockerfile that `mlflow models generate-dockerfile` writes for the model, unchanged but for its
FROM, which becomes the base image of both sides. It downloads from Debian's and Python's indexes, over the network of
this machine. Both images must give the model's right answer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.docker import DockerDataPlane
from mlflow_domino.engine import Engine
from mlflow_domino.home import Home
from tests.benchmarks.measure import scratch
from tests.benchmarks.models import MODELS, Model
from tests.conftest import eventually, free_port

_NAME = "mlflow-domino-benchmark/recipe:1"
_WANTED = 0.60


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="iris")
    parser.add_argument("--base", default="python:3.11-slim-bookworm")
    options = parser.parse_args()
    engine = Engine()
    base = engine.pull(options.base, print).size
    with scratch() as folder:
        model = MODELS[options.model](folder)
        ours = _ours(model, folder, options.base) - base
        theirs = _theirs(model, folder, options.base, engine) - base
    print(f"{options.base}: {_mb(base)}")
    print(f"ours adds {_mb(ours)}, MLflow's recipe adds {_mb(theirs)}: {ours / theirs:.2f} of it ({_WANTED} wanted)")
    sys.exit(0 if ours <= _WANTED * theirs else 1)


def _ours(model: Model, folder: Path, base: str) -> int:
    """Return the size of the image that an endpoint of the model runs in."""
    home = Home(folder / "home")
    home.root.mkdir()
    home.config.write_text(f'[data_planes.docker]\nport = {free_port()}\nbase_image = "{base}"\n')
    controller = Controller.open("domino:/docker", home=home, say=lambda line: print(f"  {line}", file=sys.stderr))
    try:
        view, token = controller.create("measured", str(model.path))
        answer = requests.post(view.url, json=model.domino(), auth=(token, token), timeout=30)
        assert answer.json()["result"] == [model.answer], answer.text
        artifact = controller.find_version("measured").artifact
        assert artifact is not None
        assert isinstance(controller.plane, DockerDataPlane)
        image = controller.plane.engine.image(artifact.environment)
        assert image is not None
        return image.size
    finally:
        try:
            controller.delete("measured")
        finally:
            controller.down()


def _theirs(model: Model, folder: Path, base: str, engine: Engine) -> int:
    """Return the size of the image that MLflow's recipe makes of the model."""
    context = folder / "recipe"
    argv = ["-m", "mlflow", "models", "generate-dockerfile", "-m", str(model.path), "-d", str(context)]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, *argv], check=True, env=environment)
    recipe = context / "Dockerfile"
    text, replaced = re.subn(r"(?m)^FROM .*$", f"FROM {base}", recipe.read_text())
    assert replaced == 1, recipe.read_text()
    recipe.write_text(text)
    subprocess.run(["docker", "build", "--network", "host", "-t", _NAME, str(context)], check=True, stdout=sys.stderr)
    try:
        with _served() as url:
            answer = requests.post(f"{url}/invocations", json=model.mlflow(), timeout=30)
            assert answer.json() == {"predictions": [model.answer]}, answer.text
        image = engine.image(_NAME)
        assert image is not None
        return image.size
    finally:
        engine.remove_image(_NAME)


@contextlib.contextmanager
def _served() -> Iterator[str]:
    port = free_port()
    run = ["docker", "run", "-d", "-p", f"127.0.0.1:{port}:8080", _NAME]
    made = subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()
    url = f"http://127.0.0.1:{port}"

    def ready() -> Any:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{url}/ping", timeout=2).ok

    try:
        eventually(ready, within=120, every=0.5)
        yield url
    finally:
        subprocess.run(["docker", "rm", "-f", made], check=True, capture_output=True)


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


if __name__ == "__main__":
    main()
