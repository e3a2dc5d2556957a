"""The target as MLflow's own CLI and client use it, with the traps of that CLI (one test each)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_domino.home import Home
from tests.conftest import eventually
from tests.deployment import ECHO, Deployment

ADD = """
def predict(start, stop=10, **more):
    return [start, stop, more]
"""


def mlflow(*words: str, fails: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mlflow", "deployments", *words]
    done = subprocess.run(argv, text=True, capture_output=True, timeout=180, env={**os.environ, **environment})
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("project")
    (folder / "model.py").write_text(ADD)
    return str(folder)


@pytest.fixture(scope="module")
def created(home: Home, project: str) -> str:
    """What `mlflow deployments create` printed of an endpoint `cli`."""
    return mlflow("create", "-t", "domino", "--name", "cli", "-m", project, "-C", "file=model.py").stdout


def test_create_prints_url_token_and_a_curl_line_that_works(created: str) -> None:
    assert "file deployment cli is created" in created
    url = re.search(r"URL +(\S+/latest/model)", created)
    token = re.search(r"token +([A-Za-z0-9]{64})", created)
    assert url
    assert token
    curl = re.search(r"curl -u (\S+):(\S+)", created)
    assert curl
    assert curl[1] == curl[2] == token[1]


def test_list_and_get_print_what_there_is_without_a_token(created: str) -> None:
    listed = mlflow("list", "-t", "domino").stdout
    got = mlflow("get", "-t", "domino", "--name", "cli").stdout
    token = re.search(r"token +([A-Za-z0-9]{64})", created)
    assert token
    assert "'name': 'cli'" in listed
    assert "status: Running" in got
    assert token[1] not in listed + got


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"data": {"start": 1, "stop": 100}}, [1, 100, {}]),
        ({"data": {"start": "a", "stop": None, "x": {"y": [1, 2]}}}, ["a", None, {"x": {"y": [1, 2]}}]),
        ({"parameters": [1, 2]}, [1, 2, {}]),
    ],
    ids=["data", "data of mixed types", "parameters"],
)
def test_predict_sends_dominos_bodies_although_the_cli_reads_them_as_frames(
    created: str, tmp_path: Path, body: object, wanted: object
) -> None:
    (tmp_path / "body.json").write_text(json.dumps(body))
    mlflow(
        "predict", "-t", "domino", "--name", "cli", "-I", str(tmp_path / "body.json"), "-O", str(tmp_path / "out.json")
    )
    assert json.loads((tmp_path / "out.json").read_text())["predictions"] == wanted


def test_update_prints_the_flavor_and_the_new_version(created: str, project: str) -> None:
    printed = mlflow("update", "-t", "domino", "--name", "cli", "-m", project, "-C", "file=model.py").stdout
    assert "file" in printed
    assert "version 2 answers" in printed


def test_an_error_is_one_message_with_the_way_out(created: str) -> None:
    done = mlflow("update", "-t", "domino", "--name", "cli", "-C", "replica=2", fails=True)
    assert "did you mean 'replicas'?" in done.stderr


def test_help_lists_every_key_of_the_table() -> None:
    printed = mlflow("help", "-t", "domino").stdout
    for key in ("request_timeout_s", "strict_schema", "routing_mode", "env", "index_url"):
        assert re.search(rf"^  {key} ", printed, re.MULTILINE), key


def test_endpoints_verbs_work_but_for_the_one_that_mlflow_breaks(created: str) -> None:
    assert "cli" in mlflow("list-endpoints", "-t", "domino").stdout
    assert "cli" in mlflow("get-endpoint", "-t", "domino", "--endpoint", "cli").stdout
    broken = mlflow("create-endpoint", "-t", "domino", "--endpoint", "made", fails=True)
    assert "unexpected keyword argument 'endpoint'" in broken.stderr, "MLflow mended it: say so in the README"


def test_delete_may_be_repeated(home: Home, project: str) -> None:
    mlflow("create", "-t", "domino", "--name", "twice", "-m", project, "-C", "file=model.py")
    mlflow("delete", "-t", "domino", "--name", "twice")
    mlflow("delete", "-t", "domino", "--name", "twice")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_run_local_serves_in_the_foreground_and_leaves_nothing(
    home: Home, project: str, tmp_path: Path, number: signal.Signals
) -> None:
    argv = [
        sys.executable,
        "-m",
        "mlflow",
        "deployments",
        "run-local",
        "-t",
        "domino",
        "--name",
        "x",
        "-m",
        project,
        "-C",
        "file=model.py",
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with open(tmp_path / "out", "w+") as out:
        server = subprocess.Popen(
            argv, stdout=out, stderr=out, env=environment, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)
        )
        try:
            eventually(lambda: "Serving" in (tmp_path / "out").read_text() or server.poll() is not None, within=90)
            assert server.poll() is None, (tmp_path / "out").read_text()
        finally:
            server.send_signal(number)
            server.wait(40)
    assert not list(tmp_path.glob("mlflow-domino-*"))
    assert "Traceback" not in (tmp_path / "out").read_text()


class TestClient:
    """`get_deploy_client("domino")` in Python."""

    def test_create_blocks_until_the_version_answers_and_returns_the_facts(
        self, home: Home, deployment: Deployment, tmp_path: Path
    ) -> None:
        client = get_deploy_client("domino")
        uri = deployment.project(tmp_path / "p", ECHO, VALUE=7)
        made = client.create_deployment("py", uri, config={"file": "model.py", "env": {"A": "b"}})
        try:
            keys = {"name", "flavor", "id", "url", "version", "version_id", "status", "data_plane", "source", "token"}
            assert keys <= set(made)
            assert (made["status"], made["version"], made["data_plane"]) == ("Running", 1, "local")
            assert client.predict("py", {"data": {}})["predictions"] == 7
            updated = client.update_deployment("py", config={"workers": 2})
            assert updated["version"] == 2
            assert "token" not in updated
            assert [d["name"] for d in client.list_deployments() if d["name"] == "py"] == ["py"]
        finally:
            client.delete_deployment("py")

    @pytest.mark.parametrize(
        ("call", "code"),
        [
            (lambda c: c.get_deployment("absent"), "RESOURCE_DOES_NOT_EXIST"),
            (lambda c: c.create_deployment("a/b", "."), "INVALID_PARAMETER_VALUE"),
            (lambda c: c.create_deployment("x", ".", config={"nonsense": 1}), "INVALID_PARAMETER_VALUE"),
            (lambda c: c.create_deployment("x", ".", endpoint="y"), "INVALID_PARAMETER_VALUE"),
            (lambda c: c.update_deployment("absent", "."), "RESOURCE_DOES_NOT_EXIST"),
            (lambda c: c.predict("absent", {"data": {}}), "RESOURCE_DOES_NOT_EXIST"),
            (lambda c: c.explain("absent"), "NOT_IMPLEMENTED"),
        ],
    )
    def test_errors_are_mlflow_exceptions_with_the_right_code(self, home: Home, call: object, code: str) -> None:
        with pytest.raises(MlflowException) as caught:
            call(get_deploy_client("domino"))  # type: ignore[operator]
        assert caught.value.error_code == code

    def test_what_the_endpoint_refuses_comes_with_its_own_words(
        self, home: Home, deployment: Deployment, tmp_path: Path
    ) -> None:
        deployment.create("strict", deployment.project(tmp_path / "p", "def predict(x):\n    return x\n"))
        with pytest.raises(MlflowException, match="argument: 'x'") as caught:
            get_deploy_client("domino").predict("strict", {"data": {"y": 1}})
        assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_importing_the_package_does_not_import_mlflow() -> None:
    code = "import mlflow_domino.controller, mlflow_domino.data_planes.local, sys; sys.exit('mlflow' in sys.modules)"
    begun = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    print(f"{time.monotonic() - begun:.2f} s")
