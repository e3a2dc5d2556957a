"""Asynchronous endpoints in a cluster, whole: two gateways with their dispatchers, pods, and a PostgreSQL beside them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa

from mlflow_domino.builder import builder_of
from mlflow_domino.cli import main
from mlflow_domino.cluster import Cluster
from mlflow_domino.controller import Controller
from mlflow_domino.errors import Conflict, DominoError, Unsupported
from mlflow_domino.home import Home
from mlflow_domino.views import EndpointView
from tests.caller import MODEL, Caller, published_client, run_client
from tests.conftest import eventually
from tests.deployment import Deployment
from tests.kubernetes.conftest import REGISTRY, left_behind
from tests.kubernetes.hand import kubectl, running
from tests.kubernetes.stage import own_host
from tests.postgresql import PostgreSQL, postgresql

NAME = "queued"
#: In a gateway's pod: application, dispatcher and watcher, but neither Envoy nor the first process, which begins them again.
KILL_PYTHON = """
for one in /proc/[0-9]*; do
    if tr '\\0' ' ' <$one/cmdline | grep -Eq 'gateway[.](serve|dispatcher|watcher)'; then kill -9 ${one#/proc/}; fi
done
"""


@pytest.fixture(scope="module")
def context() -> str:
    return "local"


@pytest.fixture(scope="module")
def database(namespace: Cluster) -> Iterator[PostgreSQL]:
    """A PostgreSQL of this machine, on the address by which pods know it."""
    server = postgresql(own_host(namespace))
    yield server
    server.remove()


@pytest.fixture(scope="module")
def plane_home(
    namespace: Cluster, database: PostgreSQL, tmp_path_factory: pytest.TempPathFactory, shared_environments: Path
) -> Iterator[Home]:
    try:
        builder_of()
    except DominoError as error:
        pytest.skip(f"nothing builds images: {error}")
    home = Home(tmp_path_factory.mktemp("home"))
    (home.root / "config.toml").write_text(declared(namespace, database.url))
    home.environments.symlink_to(shared_environments)
    yield home
    controller = Controller.open("domino:/kube", home=home, recover=False)
    assert not controller.endpoints()
    controller.down()
    eventually(lambda: not left_behind(namespace), within=60)


def declared(namespace: Cluster, queue: str = "", more: str = "") -> str:
    told = f'queue = "{queue}"\n' if queue else ""
    return (
        f'[data_planes.kube]\nkind = "kubernetes"\ncontext = "{namespace.context}"\n'
        f'namespace = "{namespace.namespace}"\nregistry = "{REGISTRY}"\ngateway_replicas = 2\n{told}{more}'
    )


@pytest.fixture
def made(deployment: Deployment, tmp_path: Path) -> EndpointView:
    return deployment.create(NAME, project(deployment, tmp_path, 1), is_async=True, threads=4, drain_s=20)


@pytest.fixture
def caller(made: EndpointView, deployment: Deployment) -> Caller:
    return Caller(made.url, deployment.token)


def project(deployment: Deployment, folder: Path, version: int) -> str:
    return deployment.project(folder / str(version), MODEL, VERSION=version)


def rows(database: PostgreSQL, endpoint_id: str) -> list[tuple[str, int, str]]:
    """Return id, state and result of an endpoint's predictions, as they are stored."""
    engine = sa.create_engine(database.url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.connect() as connection:
            query = "SELECT id, state, result FROM domino_predictions WHERE endpoint_id = :e"
            return [tuple(row) for row in connection.execute(sa.text(query), {"e": endpoint_id})]
    finally:
        engine.dispose()


# ---- the contract ----------------------------------------------------------------------------------------------------


def test_dominos_published_client_gets_its_answer_through_two_gateways(
    made: EndpointView, deployment: Deployment, namespace: Cluster, tmp_path: Path
) -> None:
    assert len(running(namespace, "gateway")) == 2
    for n in range(2):
        ended = run_client(published_client(tmp_path, made, deployment.token, {"x": "value1", "param3": n}))
        assert ended.returncode == 0, ended.stderr
        assert "prediction succeeded" in ended.stdout
        assert f'"param3": {n}' in ended.stdout
    # Each call is a connection of its own, which goes to either of them.
    caller = Caller(made.url, deployment.token)
    ids = [caller.submit(x=n) for n in range(10)]
    assert [caller.ended(one)["result"]["x"] for one in ids] == list(range(10))


def test_dominos_published_client_is_told_of_a_failing_model(
    made: EndpointView, deployment: Deployment, tmp_path: Path
) -> None:
    ended = run_client(published_client(tmp_path, made, deployment.token, {"fail": "yes"}))
    assert ended.returncode == 0, ended.stderr
    assert "prediction failed, errors" in ended.stdout
    assert "secret" not in ended.stdout


@pytest.mark.slow
def test_dominos_published_client_gets_through_while_everything_but_envoy_restarts(
    made: EndpointView, deployment: Deployment, namespace: Cluster, database: PostgreSQL, tmp_path: Path
) -> None:
    path = published_client(tmp_path, made, deployment.token, {"x": "value1", "s": 5})
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert "prediction id" in client.stdout.readline()
        database.stop()
        for pod in running(namespace, "gateway"):
            kubectl(namespace, "exec", pod, "--", "sh", "-c", KILL_PYTHON)
        kill_a_replica(namespace, database)
        database.start()
        assert "prediction succeeded" in client.stdout.readline()
        client.stdout.read()
    assert client.returncode == 0


def test_a_token_is_valid_and_refused_at_every_gateway_from_the_moment_that_the_command_returns(
    made: EndpointView, deployment: Deployment
) -> None:
    def statuses(token: str) -> list[int]:
        headers = {"Authorization": f"Bearer {token}"}
        return [requests.get(made.url, headers=headers, timeout=30).status_code for _ in range(20)]

    assert statuses("x" * 64) == [401] * 20
    for _ in range(3):
        _token, text = deployment.controller.create_token(NAME, "second")
        assert statuses(text) == [200] * 20
        deployment.controller.revoke_token(NAME, "second")
        assert statuses(text) == [401] * 20


def test_an_update_finishes_what_runs_on_the_old_version_and_runs_the_rest_on_the_new(
    caller: Caller, deployment: Deployment, tmp_path: Path
) -> None:
    long = [caller.submit(x=n, s=8) for n in range(2)]
    caller.begun(long[1])
    meanwhile: list[str] = []
    submitting = threading.Thread(target=lambda: meanwhile.extend(caller.submit(x=n, s=0.1) for n in range(30)))
    submitting.start()
    deployment.update(NAME, project(deployment, tmp_path, 2))
    submitting.join()
    assert [caller.ended(one)["result"]["x"] for one in meanwhile] == list(range(30))
    after = [caller.ended(caller.submit(x=n))["result"]["version"] for n in range(5)]
    assert after == [2] * 5
    found = [caller.poll(one, details=True) for one in long]
    assert [(one["status"], one["result"]["version"]) for one in found] == [("succeeded", 1)] * 2
    assert all(not one["attempts"] for one in found)


def test_what_takes_longer_than_the_drain_runs_again_on_the_new_version(
    caller: Caller, deployment: Deployment, tmp_path: Path
) -> None:
    deployment.update(NAME, drain_s=1)
    long = caller.submit(x=1, s=300)
    caller.begun(long)
    code = MODEL.replace("time.sleep(s)", "time.sleep(0)")
    deployment.update(NAME, deployment.project(tmp_path / "2", code, VERSION=3))
    caller.ended(long, within=180)
    found = caller.poll(long, details=True)
    assert (found["status"], found.get("result", {}).get("version"), len(found["attempts"])) == ("succeeded", 3, 1), (
        found
    )


def test_what_waits_outlives_stop_and_start_and_the_whole_data_plane(caller: Caller, deployment: Deployment) -> None:
    ids = [caller.submit(x=n, s=0.5) for n in range(30)]
    deployment.controller.stop(NAME)
    refused = requests.post(caller.url, json={"parameters": {}}, headers=caller.headers, timeout=30)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "NOT_READY")
    assert "queued" in [caller.poll(one)["status"] for one in ids]
    deployment.controller.down()
    deployment.controller.start(NAME)
    assert [caller.ended(one)["result"]["x"] for one in ids] == list(range(30))


def test_a_deleted_endpoint_takes_its_predictions_along(
    deployment: Deployment, tmp_path: Path, database: PostgreSQL
) -> None:
    view = deployment.create("passing", project(deployment, tmp_path, 1), is_async=True)
    caller = Caller(view.url, deployment.token)
    one = caller.submit(x=1)
    caller.ended(one)
    assert len(rows(database, view.endpoint.id)) == 1
    deployment.controller.delete("passing")
    assert rows(database, view.endpoint.id) == []
    assert caller.poll(one)["status"] == 404


def test_whoever_looks_after_the_endpoint_needs_neither_the_database_nor_a_caller_s_token(
    made: EndpointView, caller: Caller, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("MLFLOW_DOMINO_HOME", str(deployment.home.root))
    deployment.home.caller_token(made.endpoint.id).unlink()

    def run(*words: str) -> Any:
        assert main([*words, "-t", "domino:/kube", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    good, bad = caller.submit(x=1), caller.submit(fail="yes")
    for one in (good, bad):
        caller.ended(one)
    assert [one["asyncPredictionId"] for one in run("predictions", "list", NAME)["predictions"]] == [bad, good]
    assert run("predictions", "show", NAME, good)["result"]["x"] == 1
    run("predictions", "retry", NAME, bad)
    assert caller.ended(bad)["status"] == "failed"
    assert run("status", NAME)["queue"]["running"] == 0


# ---- the queue -------------------------------------------------------------------------------------------------------


def test_the_password_of_the_queue_is_in_the_gateway_s_secret_and_nowhere_else(
    made: EndpointView, caller: Caller, deployment: Deployment, namespace: Cluster, database: PostgreSQL, tmp_path: Path
) -> None:
    caller.ended(caller.submit(x=1))
    held = namespace.get("Secret", "mlflow-domino-gateway")
    assert held is not None
    assert set(held["data"]) == {"management-token", "queue"}
    kinds = ("ConfigMap", "Deployment", "ReplicaSet", "Pod", "Service", "Lease", "Role", "Event")
    told = json.dumps([namespace.list(kind) for kind in kinds])
    others = [s for s in namespace.list("Secret") if s["metadata"]["name"] != "mlflow-domino-gateway"]
    told += json.dumps(others)
    inside = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' '\\n'"
    for kind, container in (("gateway", "gateway"), ("model", "model")):
        for pod in running(namespace, kind):
            told += namespace.pod_log(pod)
            told += kubectl(namespace, "exec", pod, "-c", container, "--", "sh", "-c", f"{inside}; true")
    (model,) = running(namespace, "model")
    told += kubectl(
        namespace, "exec", model, "-c", "model", "--", "sh", "-c", "grep -rsl postgresql:// /run /etc; true"
    )
    told += "".join(deployment.controller.plane.entrance.render("image:1").values())  # type: ignore[attr-defined]
    assert database.password not in told
    assert "postgresql://domino" not in told


def test_another_queue_than_the_gateway_s_is_refused(
    made: EndpointView, deployment: Deployment, namespace: Cluster, database: PostgreSQL, tmp_path: Path
) -> None:
    config = deployment.home.config
    before = config.read_text()
    try:
        config.write_text(declared(namespace, database.url + "2"))
        with pytest.raises(Conflict, match=r"another queue than `queue`.*gateway install") as caught:
            deployment.update(NAME, project(deployment, tmp_path, 2))
        assert database.password not in str(caught.value)
    finally:
        config.write_text(before)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("", r"need a database for their queue.*queue = "),
        ("remote = true\n", r"remote data plane do not support.*queue = "),
    ],
)
def test_without_a_queue_asynchronous_endpoints_are_refused(
    deployment: Deployment, namespace: Cluster, tmp_path: Path, more: str, reason: str
) -> None:
    config = deployment.home.config
    before = config.read_text()
    try:
        config.write_text(declared(namespace, more=more))
        with pytest.raises(Unsupported, match=reason):
            deployment.create("homeless", project(deployment, tmp_path, 1), is_async=True)
    finally:
        config.write_text(before)
    with pytest.raises(DominoError):
        deployment.controller.endpoint("homeless")


# ---- faults ----------------------------------------------------------------------------------------------------------


def kill_a_gateway(namespace: Cluster, _database: PostgreSQL) -> None:
    namespace.delete("Pod", running(namespace, "gateway")[0], grace_s=0)


def kill_a_replica(namespace: Cluster, _database: PostgreSQL) -> None:
    namespace.delete("Pod", running(namespace, "model")[0], grace_s=0)


def kill_every_process_of_a_gateway(namespace: Cluster, _database: PostgreSQL) -> None:
    with contextlib.suppress(subprocess.CalledProcessError):  # it kills itself as well
        kubectl(namespace, "exec", running(namespace, "gateway")[-1], "--", "sh", "-c", "kill -9 -1")


def stop_the_database(_namespace: Cluster, database: PostgreSQL) -> None:
    database.stop()
    database.start()


@pytest.mark.parametrize(
    "fault",
    [kill_a_gateway, kill_a_replica, kill_every_process_of_a_gateway, stop_the_database],
    ids=lambda f: f.__name__,
)
def test_every_acknowledged_prediction_ends_with_one_stored_answer(
    deployment: Deployment,
    namespace: Cluster,
    database: PostgreSQL,
    tmp_path: Path,
    fault: Callable[[Cluster, PostgreSQL], None],
) -> None:
    view = deployment.create(NAME, project(deployment, tmp_path, 1), is_async=True, threads=4, replicas=2)
    eventually(lambda: len(running(namespace, "gateway")) == 2, within=120)
    ids = accepted_while(lambda: fault(namespace, database), Caller(view.url, deployment.token))
    caller = Caller(view.url, deployment.token)
    for n, one in enumerate(ids):
        found = caller.ended(one, within=180)
        assert (found["status"], found.get("result", {}).get("x")) == ("succeeded", n), found
    stored = rows(database, view.endpoint.id)
    assert sorted(one for one, _, _ in stored) == sorted(ids)
    assert {state for _, state, _ in stored} == {3}


def accepted_while(fault: Callable[[], None], caller: Caller) -> list[str]:
    """Submit 200 predictions, four at once; have something happen when a third of them is accepted."""
    ids: dict[int, str] = {}
    a_third = threading.Event()

    def submit(first: int) -> None:
        for n in range(first, 200, 4):
            ids[n] = caller.submit(x=n, s=0.05)
            if len(ids) >= 66:
                a_third.set()

    threads = [threading.Thread(target=submit, args=(first,)) for first in range(4)]
    for one in threads:
        one.start()
    assert a_third.wait(120)
    fault()
    for one in threads:
        one.join()
    assert len(set(ids.values())) == 200
    return [ids[n] for n in range(200)]
