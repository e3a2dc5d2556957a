"""Asynchronous endpoints on the local data plane, whole: Envoy, the gateway's application, dispatcher, seldon-core, harness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_domino.asynchronous import Predictions
from mlflow_domino.cli import main
from mlflow_domino.errors import DominoError, InvalidInput, Unsupported
from mlflow_domino.home import Home
from mlflow_domino.models import Status
from mlflow_domino.views import EndpointView
from tests.caller import MODEL, Caller, published_client, run_client
from tests.conftest import eventually
from tests.deployment import Deployment
from tests.faults import KINDS, kill


@pytest.fixture
def made(deployment: Deployment, tmp_path: Path) -> EndpointView:
    return deployment.create("queued", project(deployment, tmp_path, 1), is_async=True)


def project(deployment: Deployment, tmp_path: Path, version: int) -> str:
    return deployment.project(tmp_path / str(version), MODEL, VERSION=version)


def test_dominos_published_client_gets_its_answer(made: EndpointView, deployment: Deployment, tmp_path: Path) -> None:
    ended = run_client(published_client(tmp_path, made, deployment.token, {"x": "value1", "param3": 3}))
    assert ended.returncode == 0, ended.stderr
    assert "prediction succeeded" in ended.stdout
    assert '"param3": 3' in ended.stdout


def test_dominos_published_client_is_told_of_a_failing_model(
    made: EndpointView, deployment: Deployment, tmp_path: Path
) -> None:
    ended = run_client(published_client(tmp_path, made, deployment.token, {"fail": "yes"}))
    assert ended.returncode == 0, ended.stderr
    assert "prediction failed, errors" in ended.stdout
    assert "the model failed" in ended.stdout
    assert "secret" not in ended.stdout
    assert "Traceback" not in ended.stdout


def test_dominos_published_client_gets_through_while_everything_but_envoy_restarts(
    made: EndpointView, deployment: Deployment, tmp_path: Path
) -> None:
    path = published_client(tmp_path, made, deployment.token, {"s": 2})
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert "prediction id" in client.stdout.readline()
        for kind in ("application", "dispatcher", "emperor", "replica"):
            kill(deployment.home, kind)
        assert "prediction succeeded" in client.stdout.readline()
        client.stdout.read()
    assert client.returncode == 0


def test_predict_of_mlflow_waits_for_the_answer(made: EndpointView, deployment: Deployment) -> None:
    client = get_deploy_client("domino")
    answer = client.predict("queued", {"parameters": {"x": 7}})
    assert answer["predictions"] == {"version": 1, "x": 7}
    with pytest.raises(MlflowException, match="the model failed"):
        client.predict("queued", {"parameters": {"fail": "yes"}})
    with pytest.raises(MlflowException, match="parameters"):
        client.predict("queued", {"instances": [[1]]})


def test_a_model_says_how_far_it_is(made: EndpointView, deployment: Deployment, capsys: Any) -> None:
    caller = Caller(made.url, deployment.token)
    prediction_id = caller.submit(x=7, s=60)
    said = {"fraction": 0.5, "text": "x is 7"}
    eventually(lambda: caller.poll(prediction_id, details=True)["progress"] == said, within=30)
    assert main(["predictions", "list", "queued"]) == 0
    assert "running 50%" in capsys.readouterr().out
    assert "progress" not in caller.poll(prediction_id)
    assert main(["predictions", "cancel", "queued", prediction_id]) == 0
    assert main(["predictions", "show", "queued", prediction_id]) == 0
    assert json.dumps(said) in capsys.readouterr().out


def test_an_update_under_load_answers_everything_once(
    made: EndpointView, deployment: Deployment, tmp_path: Path
) -> None:
    caller = Caller(made.url, deployment.token)
    ids = [caller.submit(x=n, s=0.02) for n in range(40)]
    assert caller.ended(ids[0])["result"]["version"] == 1
    deployment.update("queued", project(deployment, tmp_path, 2))
    ids += [caller.submit(x=n) for n in range(40, 60)]
    results = [caller.ended(one)["result"] for one in ids]
    assert [result["x"] for result in results] == list(range(60))
    assert {result["version"] for result in results[40:]} == {2}


def test_what_waits_outlives_a_stop_and_down_and_up(made: EndpointView, deployment: Deployment) -> None:
    caller = Caller(made.url, deployment.token)
    ids = [caller.submit(x=n, s=0.2) for n in range(10)]
    deployment.controller.stop("queued")
    refused = requests.post(caller.url, json={"parameters": {}}, headers=caller.headers, timeout=30)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "NOT_READY")
    states = [caller.poll(one)["status"] for one in ids]
    assert set(states) <= {"queued", "succeeded"}
    assert "queued" in states
    deployment.controller.down()
    deployment.controller.up()
    eventually(lambda: caller.poll(ids[0])["status"] != 503)
    assert [caller.poll(one)["status"] for one in ids] == states
    assert deployment.controller.start("queued").status is Status.RUNNING
    assert [caller.ended(one)["result"]["x"] for one in ids] == list(range(10))


def test_a_deleted_endpoint_takes_its_predictions_and_the_dispatcher_along(
    deployment: Deployment, tmp_path: Path, home: Home
) -> None:
    view = deployment.create("passing", project(deployment, tmp_path, 1), is_async=True)
    caller = Caller(view.url, deployment.token)
    caller.ended(caller.submit(x=1))
    deployment.controller.delete("passing")
    assert requests.get(caller.url, headers=caller.headers, timeout=30).status_code == 404
    import sqlite3

    connection = sqlite3.connect(home.predictions)
    tables = ("domino_predictions", "domino_keys", "domino_deliveries", "domino_counts")
    left = [
        connection.execute(f"SELECT count(*) FROM {t} WHERE endpoint_id = ?", [view.endpoint.id]).fetchone()[0]
        for t in tables
    ]
    connection.close()
    assert left == [0, 0, 0, 0]


def test_an_endpoint_stays_what_it_was_made(made: EndpointView, deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot change"):
        deployment.update("queued", is_async=False)
    with pytest.raises(InvalidInput, match="synchronous"):
        Predictions(deployment.home, deployment.create("direct", project(deployment, tmp_path, 1)))


def test_the_command_line_lists_shows_and_repeats(made: EndpointView, deployment: Deployment, capsys: Any) -> None:
    def run(*words: str) -> tuple[int, str]:
        code = main(words)
        return code, capsys.readouterr().out

    caller = Caller(made.url, deployment.token)
    good, bad = caller.submit(x=1), caller.submit(fail="yes")
    for one in (good, bad):
        caller.ended(one)
    code, text = run("predictions", "list", "queued", "--json")
    assert code == 0
    assert [one["asyncPredictionId"] for one in json.loads(text)["predictions"]] == [bad, good]
    assert bad in run("predictions", "list", "queued", "--status", "failed")[1]
    assert good not in run("predictions", "list", "queued", "--status", "failed")[1]
    shown = json.loads(run("predictions", "show", "queued", good, "--json")[1])
    assert (shown["phase"], shown["result"]["x"]) == ("succeeded", 1)
    assert run("predictions", "retry", "queued", bad)[0] == 0
    assert caller.ended(bad)["status"] == "failed"
    assert run("predictions", "cancel", "queued", good)[0] == 2
    assert run("predictions", "show", "queued", "nothing")[0] == 3
    assert "0 wait" in run("status")[1]
    assert json.loads(run("status", "--json")[1])["endpoints"][0]["queue"]["running"] == 0
    assert "1 succeeded, 2 failed, " in run("status", "queued")[1]
    assert run("predict", "queued", "-d", '{"parameters": {"x": 3}}')[0] == 0


def test_remote_data_planes_refuse_unless_they_have_a_queue(deployment: Deployment, tmp_path: Path) -> None:
    config = deployment.home.root / "config.toml"
    before = config.read_text()
    try:
        config.write_text(before + "remote = true\n")
        with pytest.raises(Unsupported, match=r"remote data plane do not support asynchronous requests.*queue = "):
            deployment.create("far", project(deployment, tmp_path, 1), is_async=True)
    finally:
        config.write_text(before)
    with pytest.raises(DominoError):
        deployment.controller.endpoint("far")


def test_nothing_is_lost_while_processes_are_killed(made: EndpointView, deployment: Deployment) -> None:
    caller = Caller(made.url, deployment.token)
    ids = []
    for kind in KINDS:
        for n in range(5):
            ids.append(caller.submit(x=n, s=0.1))
        eventually(lambda k=kind: kill(deployment.home, k), within=60)
    for one in ids:
        found = caller.ended(one, within=90)
        assert found["status"] == "succeeded", found
