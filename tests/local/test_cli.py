"""The command `mlflow-domino` as a process, on real endpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from mlflow_domino.home import Home
from tests.conftest import eventually
from tests.deployment import ECHO, Deployment


def argv(*words: str) -> list[str]:
    return [sys.executable, "-m", "mlflow_domino", *words]


def run(*words: str, code: int = 0, text: str | None = None) -> str:
    done = subprocess.run(argv(*words), text=True, input=text, capture_output=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def echo(deployment: Deployment, tmp_path: Path) -> str:
    """An endpoint with version 1, which answers 1; its project may be changed."""
    deployment.create("echo", deployment.project(tmp_path / "p", ECHO, VALUE=1), **{"env.SECRET": "hunter2hunter2"})
    return str(tmp_path / "p")


@pytest.fixture
def following(echo: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        argv("logs", "echo", "--follow", "-n", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        yield process
        process.kill()


def status(name: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(run("status", name, "--json"))
    return document


def test_an_endpoint_is_made_called_updated_and_removed(deployment: Deployment, tmp_path: Path) -> None:
    project = deployment.project(tmp_path / "p", ECHO, VALUE=1)
    made = json.loads(run("endpoint", "create", "cli", "-m", project, "-C", "file=model.py", "--json"))
    assert made["status"] == "Running"
    assert len(made["token"]) == 64
    assert json.loads(run("predict", "cli", "-d", '{"data": {"x": 1}}'))["predictions"] == 1
    assert json.loads(run("predict", "cli", text='{"parameters": [1]}'))["predictions"] == 1
    deployment.project(tmp_path / "p", ECHO, VALUE=2)
    assert "latest is version 2" in run("endpoint", "update", "cli", "-m", project)
    assert json.loads(run("predict", "cli", "-d", '{"data": {}}'))["predictions"] == 2
    assert "latest is version 1" in run("endpoint", "rollback", "cli")
    assert json.loads(run("predict", "cli", "-d", '{"data": {}}'))["predictions"] == 1
    run("endpoint", "delete", "cli")
    assert "no endpoint 'cli'" in run("predict", "cli", "-d", "{}", code=3)


def test_a_failed_version_is_explained_and_leaves_the_old_one(echo: str, tmp_path: Path) -> None:
    (tmp_path / "p/model.py").write_text("raise RuntimeError('no such weights')\ndef predict(): ...\n")
    said = run("endpoint", "update", "echo", "-m", echo, code=1)
    assert "no such weights" in said
    assert said.startswith(("fetching", "building", "starting", "Error"))
    assert json.loads(run("predict", "echo", "-d", '{"data": {}}'))["predictions"] == 1
    assert "no such weights" in run("endpoint", "versions", "echo")
    assert "no such weights" in run("logs", "echo", "--version", "2")
    assert "hunter2hunter2" not in run("endpoint", "show", "echo", "--json") + run("logs", "echo")


def test_stopping_scaling_and_starting_are_told_truly(echo: str) -> None:
    run("endpoint", "scale", "echo", "2")
    assert (status("echo")["replicas"], status("echo")["replicas_ready"]) == (2, 2)
    run("endpoint", "stop", "echo")
    assert status("echo")["status"] == "Stopped"
    assert "503" in run("predict", "echo", "-d", '{"data": {}}', code=5)
    run("endpoint", "start", "echo")
    assert status("echo")["replicas_ready"] == 2


def test_down_ends_everything_and_up_brings_it_back(echo: str, home: Home) -> None:
    url = status("echo")["url"]
    token = home.caller_token(str(status("echo")["id"]))
    assert token.exists()
    run("down")
    assert json.loads(run("status", "--json"))["data_plane"]["up"] is False
    assert status("echo")["status"] == "Unreachable"
    run("down")
    assert "is up" in run("up")
    assert status("echo")["status"] == "Running"
    assert status("echo")["url"] == url
    assert "was up already" in run("up")
    assert json.loads(run("predict", "echo", "-d", '{"data": {}}'))["predictions"] == 1


def test_a_token_is_valid_when_the_command_returns(echo: str) -> None:
    url = str(status("echo")["url"])
    token = run("token", "create", "echo", "ci").strip()
    call = {"json": {"data": {}}, "auth": (token, token), "timeout": 30}
    assert requests.post(url, **call).status_code == 200  # type: ignore[arg-type]
    run("token", "revoke", "echo", "ci")
    assert requests.post(url, **call).status_code == 401  # type: ignore[arg-type]


def test_logs_are_followed_until_ctrl_c(following: subprocess.Popen[str], tmp_path: Path) -> None:
    assert following.stdout is not None
    os.set_blocking(following.stdout.fileno(), False)
    seen: list[str] = []

    def heard() -> bool:
        assert following.stdout is not None
        run("predict", "echo", "-d", '{"data": {}}')
        seen.extend(following.stdout.readlines())
        return any("started anew" in line for line in seen)

    (tmp_path / "p/model.py").write_text("print('started anew')\ndef predict(**more): print('called'); return 1\n")
    run("endpoint", "update", "echo", "-m", str(tmp_path / "p"))
    eventually(heard, within=20)
    following.send_signal(signal.SIGINT)
    assert following.wait(10) == 130
    assert following.stderr is not None
    assert following.stderr.read().strip() == ""


def test_a_command_that_is_killed_in_an_update_is_put_in_order_by_the_next(echo: str, tmp_path: Path) -> None:
    (tmp_path / "p/model.py").write_text("import time; time.sleep(60)\ndef predict(): ...\n")
    with subprocess.Popen(argv("endpoint", "update", "echo", "-m", echo), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("starting version 2" in line for line in process.stderr)
        psutil.Process(process.pid).kill()
    done = subprocess.run(argv("status", "echo", "--json"), text=True, capture_output=True, timeout=120)
    assert "was interrupted" in done.stderr
    assert json.loads(done.stdout)["version"] == 1
    assert json.loads(run("predict", "echo", "-d", '{"data": {}}'))["predictions"] == 1
