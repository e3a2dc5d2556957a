"""The main job, for real: train and register a model, deploy it, call it, update it while a client keeps calling."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TRAIN = """
import mlflow, sys
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
frame, labels = load_iris(as_frame=True, return_X_y=True)
for c in (0.1, 10.0):
    model = LogisticRegression(C=c, max_iter=1000).fit(frame, labels)
    mlflow.sklearn.log_model(model, name="iris", registered_model_name="iris", input_example=frame.head(2))
"""


def run(command: str, *, quiet: bool = False) -> str:
    """Run a command as a person would type it, showing it and what it prints; stop at the first failure."""
    if not quiet:
        print(f"\n$ {command}", flush=True)
    begun = time.monotonic()
    done = subprocess.run(command, shell=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if not quiet or done.returncode:
        print(done.stdout.rstrip())
        print(f"  ({time.monotonic() - begun:.1f} s)", flush=True)
    if done.returncode:
        sys.exit(f"this command failed: {command}")
    return done.stdout


class Caller(threading.Thread):
    """Calls an endpoint over and over, 100 times a second, and counts answers."""

    def __init__(self, url: str, token: str, row: dict[str, float]) -> None:
        super().__init__(daemon=True)
        self.url, self.token, self.row = url, token, row
        self.ended = threading.Event()
        self.answers: dict[str, int] = {}

    def run(self) -> None:
        import requests

        with requests.Session() as session:
            session.auth = (self.token, self.token)
            while not self.ended.wait(0.01):
                try:
                    answer = session.post(self.url, json={"data": self.row}, timeout=30)
                    key = f"version {answer.json()['release']['registered_model_version']}" if answer.ok else "failed"
                except requests.RequestException:
                    key = "failed"
                self.answers[key] = self.answers.get(key, 0) + 1


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="quickstart-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(f"[data_planes.local]\nport = {port}\n")
    os.environ.update(
        MLFLOW_DOMINO_HOME=str(home),
        MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db",
        GIT_PYTHON_REFRESH="quiet",
    )
    os.chdir(folder)
    try:
        story()
    finally:
        subprocess.run(["mlflow-domino", "down"], stdout=subprocess.DEVNULL)
        subprocess.run(["chmod", "-R", "u+w", str(folder)])
        shutil.rmtree(folder, ignore_errors=True)


def story() -> None:
    Path("train.py").write_text(TRAIN)
    print("Training two models and registering them as versions 1 and 2 of `iris` ...", flush=True)
    run(f"{shlex.quote(sys.executable)} train.py", quiet=True)

    created = run("mlflow deployments create -t domino --name iris -m models:/iris/1")
    token = next(line.split()[1] for line in created.splitlines() if line.split()[:1] == ["token"])
    url = next(line.split()[1] for line in created.splitlines() if line.split()[:1] == ["URL"])

    row = {"sepal length (cm)": 6.3, "sepal width (cm)": 2.7, "petal length (cm)": 4.9, "petal width (cm)": 1.8}
    Path("body.json").write_text(json.dumps({"data": row}))
    if shutil.which("curl"):
        run(f"curl -s -u {token}:{token} -H 'Content-Type: application/json' -d @body.json {url}")
    run("mlflow deployments predict -t domino --name iris -I body.json")

    caller = Caller(url, token, row)
    caller.start()
    run("mlflow deployments update -t domino --name iris -m models:/iris/2")
    run("mlflow-domino endpoint rollback iris")
    caller.ended.set()
    caller.join()
    print(f"\nMeanwhile a client called it all the time: {caller.answers}")
    run("mlflow-domino status")
    run("mlflow deployments delete -t domino --name iris")
    if caller.answers.get("failed") or len(caller.answers) < 2:
        sys.exit("requests failed, or the update did not show")
    print("\nNo request failed. `mlflow-domino --help` has the rest.")


if __name__ == "__main__":
    main()
