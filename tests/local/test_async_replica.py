"""An asynchronous replica: the harness, and seldon-core's microservice beside it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import free_port
from tests.messages import CLIENT
from tests.replica import basic, poll
from tests.seldon import GATEWAY, PREDICT, AsyncReplica, caller, seldon_python, serving_messages


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, shared_environments: Path) -> Path:
    return seldon_python(tmp_path_factory.mktemp("home"), shared_environments)


@pytest.fixture(scope="module")
def adds(python: Path) -> Iterator[AsyncReplica]:
    with serving_messages("adds", python) as replica:
        yield replica


# ---- messages --------------------------------------------------------------------------------------------------------


def test_a_message_is_answered_with_the_models_result(adds: AsyncReplica) -> None:
    answer = adds.predict(a=1, b=2.5)
    assert answer.status == 200
    assert answer.json["jsonData"] == {"sum": 3.5}
    assert answer.json["meta"]["puid"] == "p-1"
    assert set(answer.json["meta"]["tags"]) == {"request_id", "model_time_in_ms"}


@pytest.mark.parametrize(
    "message",
    [
        {"jsonData": {"parameters": [1, 2]}},
        {"jsonData": {"data": {"a": 1, "b": 2}}},
        {"data": {"names": ["a", "b"], "ndarray": [[1, 2]]}},
        {"data": {"names": [], "tensor": {"shape": [1, 2], "values": [1, 2]}}},
    ],
)
@pytest.mark.parametrize("path", [PREDICT, "/api/v0.1/predictions", "/predict"])
def test_other_forms_of_a_message_are_answered_too(adds: AsyncReplica, message: object, path: str) -> None:
    answer = adds.send(message, path)
    assert (answer.status, answer.json["jsonData"]) == (200, {"sum": 3})


@pytest.mark.parametrize("arguments", [{"a": 1, "b": 2.5}, {"nothing": 1}, {"a": "a", "b": "é"}])
def test_a_message_is_answered_alike_in_front_of_flask_and_behind_it(adds: AsyncReplica, arguments: object) -> None:
    message = {"jsonData": {"parameters": arguments}, "meta": {"puid": "p"}}
    before, behind = (adds.send(message, path) for path in (PREDICT, f"{PREDICT}?flask=1"))
    assert (before.status, before.headers["Content-Type"]) == (behind.status, behind.headers["Content-Type"])
    assert before.json.keys() == behind.json.keys()
    assert before.json.get("jsonData") == behind.json.get("jsonData")
    assert before.json["meta"].keys() == behind.json["meta"].keys()


def test_half_a_character_comes_back_as_it_was(adds: AsyncReplica) -> None:
    answer = adds.predict(a="\ud800", b="")
    assert (answer.status, answer.json["jsonData"]) == (200, {"sum": "\ud800"})


def test_the_order_of_a_results_names_and_its_characters_stay(python: Path) -> None:
    with serving_messages("takes_anything", python, function="keywords") as replica:
        body = replica.predict(z="é", a=[1, 2.0, None]).body.decode()
    assert '"jsonData":{"z":"é","a":[1,2.0,null]}' in body


@pytest.mark.parametrize(
    ("message", "info"),
    [
        ({"jsonData": {"parameters": {"nothing": 1}}}, "'a'"),
        ({"jsonData": 7}, "parameters"),
        ({"strData": "text"}, "jsonData"),
        ({"data": {"names": ["a"], "ndarray": [[1], [2]]}}, "one row"),
        ({"data": {"tensor": {"shape": [3], "values": [1]}}}, "shape"),
        ([1], "jsonData"),
    ],
)
def test_what_a_model_cannot_take_is_refused_with_its_reason(adds: AsyncReplica, message: object, info: str) -> None:
    answer = adds.send(message)
    status = answer.json["status"]
    assert (answer.status, status["code"], status["status"], status["reason"]) == (400, 400, "FAILURE", "MODEL_ERROR")
    assert info in status["info"]


@pytest.mark.parametrize("function", ["raises", "exits", "raises_a_type_error"])
def test_a_failing_model_tells_nothing_of_its_insides(python: Path, function: str) -> None:
    with serving_messages("takes_anything", python, function=function) as replica:
        answer = replica.predict(**({"x": 1} if function == "raises_a_type_error" else {}))
        status = answer.json["status"]
        assert (answer.status, status["reason"]) == (500, "MODEL_ERROR")
        assert "boom" not in status["info"]
        assert "Traceback" not in answer.body.decode()
        request_id = answer.json["meta"]["tags"]["request_id"]
        assert request_id in status["info"]
        poll(lambda: f"[{request_id}]" in replica.log and "Traceback" in replica.log)


def test_a_result_without_a_json_form_is_the_models_failure(python: Path) -> None:
    with serving_messages("result_cannot_be_encoded", python) as replica:
        answer = replica.predict()
    assert (answer.status, answer.json["status"]["reason"]) == (500, "MODEL_ERROR")
    assert "result.outer" in answer.json["status"]["info"]


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 400), (b"{", 400), (b"null", 400), (b"[]", 400), (b'{"jsonData": {}}', 400)]
)
def test_a_body_that_is_no_message_is_refused(adds: AsyncReplica, body: bytes, status: int) -> None:
    answer = adds.ask("POST", PREDICT, body, headers={"Content-Type": "application/json"})
    assert answer.status == status
    assert answer.json["status"]["status"] == "FAILURE"


def test_a_body_that_is_too_large_or_of_unknown_length_is_refused(python: Path) -> None:
    with serving_messages("adds", python, max_body=1000) as replica:
        assert replica.predict(a="x" * 2000).status == 413
        chunked = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
        assert replica.ask("POST", PREDICT, b"2\r\n{}\r\n0\r\n\r\n", headers=chunked).status == 411
        assert replica.predict(a=1).status == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/predict", 405)])
def test_what_is_not_there_is_said_in_seldons_form(adds: AsyncReplica, method: str, path: str, status: int) -> None:
    answer = adds.ask(method, path)
    assert (answer.status, answer.json["status"]["code"]) == (status, status)


def test_seldons_health_metadata_and_metrics_are_there(adds: AsyncReplica) -> None:
    assert adds.predict(a=1).status == 200
    assert adds.ask("GET", "/health/ping").body == b"pong"
    assert adds.ask("GET", "/health/status").json["strData"] == "healthy"
    assert adds.ask("GET", "/metadata").json["name"] == "test"
    metrics = adds.ask("GET", "/metrics").body.decode()
    assert 'outcome="succeeded"' in metrics
    assert "domino_prediction_duration_seconds_bucket" in metrics


# ---- who may call ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", ["", caller(), "Bearer ", "Bearer x", "Basic x", basic(GATEWAY, "x")])
def test_nobody_but_the_gateway_may_call(adds: AsyncReplica, authorization: str) -> None:
    for method, path in (("POST", PREDICT), ("POST", "/predict"), ("GET", "/metrics"), ("GET", "/health/status")):
        answer = adds.ask(method, path, b'{"jsonData": {"data": {"a": 1}}}', authorization=authorization)
        assert answer.status == 401
        assert "WWW-Authenticate" in answer.headers
    assert adds.ask("GET", "/ready", authorization=authorization).body == b"ok\n"


def test_the_gateway_may_call_with_basic_too_and_its_socket_is_private(adds: AsyncReplica) -> None:
    message = {"jsonData": {"data": {"a": 1}}}
    assert adds.send(message, authorization=basic(GATEWAY)).status == 200
    assert stat.S_IMODE(os.stat(f"{adds.socket}.seldon").st_mode) == 0o600


def test_another_token_of_the_gateways_counts_at_once(python: Path) -> None:
    with serving_messages("adds", python) as replica:
        message = {"jsonData": {"data": {"a": 1}}}
        replica.write_tokens("A" * 64, gateway="H" * 64)
        assert replica.send(message).status == 401
        poll(lambda: replica.send(message, authorization=f"Bearer {'H' * 64}").status == 200)


def test_the_models_variables_do_not_reach_the_microservice(python: Path) -> None:
    with serving_messages("adds", python, variables={"API_KEY": "a secret of the model's"}) as replica:
        for process in replica.microservice():
            assert "API_KEY" not in process.environ()


# ---- time limits -----------------------------------------------------------------------------------------------------


def test_a_prediction_may_take_longer_than_a_request(python: Path) -> None:
    with serving_messages("sleeps", python, request_timeout_s=0.3) as replica:
        assert replica.predict(seconds=1, within_s=20).status == 200
        assert replica.predict(seconds=1).status == 200  # the limit of asynchronous predictions, nobody named another
        assert replica.post({"data": {"seconds": 1}}).status == 504
        poll(lambda: replica.predict(seconds=0).status == 200)


def test_only_the_gateway_may_take_longer(python: Path) -> None:
    with serving_messages("sleeps", python, request_timeout_s=0.3) as replica:
        late = {"X-Domino-Deadline-Ms": str(int((time.time() + 20) * 1000))}
        assert replica.post({"data": {"seconds": 1}}, headers=late).status == 504
        assert replica.post({"data": {"seconds": 1}}, headers=late, token=GATEWAY).status == 200


@pytest.mark.parametrize("limit", ["deadline", "setting"])
def test_a_prediction_over_its_time_is_stopped(python: Path, limit: str) -> None:
    settings = {"async_timeout_s": 0.5} if limit == "setting" else {}
    with serving_messages("sleeps", python, **settings) as replica:
        answer = replica.predict(seconds=60, within_s=0.5 if limit == "deadline" else 30)
        assert (answer.status, answer.json["status"]["reason"]) == (504, "TIMEOUT")
        poll(lambda: replica.predict(seconds=0, within_s=5).status == 200)


def test_a_prediction_whose_time_is_over_does_not_begin(adds: AsyncReplica) -> None:
    answer = adds.predict(a=1, within_s=-1)
    assert (answer.status, answer.json["status"]["reason"]) == (504, "TIMEOUT")


def test_a_prediction_is_stopped_when_the_gateway_says_so_and_its_neighbour_is_not(python: Path) -> None:
    with serving_messages("sleeps", python, workers=2) as replica, ThreadPoolExecutor(2) as pool:
        running = pool.submit(replica.predict, seconds=60)
        neighbour = pool.submit(replica.post, {"data": {"seconds": 2}})
        poll(lambda: replica.in_flight == 2)
        assert replica.ask("DELETE", f"{PREDICT}/another").status == 404
        assert replica.ask("DELETE", f"{PREDICT}/p-1", authorization=caller()).status == 401
        assert replica.ask("DELETE", f"{PREDICT}/p-1").status == 202
        assert running.result().json["status"]["reason"] == "LOST"
        assert neighbour.result().status == 200
        assert replica.ask("DELETE", f"{PREDICT}/p-1").status == 404
        poll(lambda: replica.predict(seconds=0).status == 200)


def test_a_model_says_how_far_it_is(python: Path, tmp_path: Path) -> None:
    def said() -> object:
        return replica.ask("GET", "/progress").json

    with serving_messages("tells_its_progress", python, threads=2) as replica, ThreadPoolExecutor(1) as pool:
        assert said() == {}
        running = pool.submit(replica.predict, until=str(tmp_path / "go"))
        poll(lambda: said() == {"p-1": {"fraction": 0.25, "text": "from here"}})
        assert replica.ask("GET", "/progress", authorization=caller()).status == 401
        (tmp_path / "go.1").touch()
        poll(lambda: said() == {"p-1": {"fraction": None, "text": "from a thread"}})
        (tmp_path / "go.2").touch()
        poll(lambda: said() == {"p-1": {"fraction": 0.75, "text": "from a process"}})
        (tmp_path / "go.3").touch()
        assert running.result().json["jsonData"] == "done"
        assert said() == {}


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["master", "worker"])
def test_a_microservice_that_is_killed_comes_back_and_the_model_stays(python: Path, which: str) -> None:
    with serving_messages("sleeps", python) as replica:
        worker = replica.call(seconds=0)
        before = replica.microservice()
        before[0 if which == "master" else 1].kill()
        poll(lambda: not before[1].is_running() and len(replica.microservice()) == 2 and replica.answers(), within=20)
        assert replica.predict(seconds=0).json["jsonData"] == worker
        assert psutil.pid_exists(before[0].pid) == (which == "worker")
        assert [path.name for path in replica.folder.glob("s*.starting")] == []


def test_a_worker_that_is_killed_at_its_prediction_is_no_failure_of_the_models(python: Path) -> None:
    with serving_messages("sleeps", python) as replica, ThreadPoolExecutor(1) as pool:
        worker = replica.call(seconds=0)
        poll(lambda: replica.in_flight == 0)  # a call counts until a moment after its answer
        running = pool.submit(replica.predict, seconds=60)
        poll(lambda: replica.in_flight == 1)
        os.kill(worker, signal.SIGKILL)
        answer = running.result()
        assert (answer.status, answer.json["status"]["reason"]) == (503, "LOST")
        poll(lambda: replica.predict(seconds=0).status == 200)


def test_a_replica_takes_no_more_than_it_can_run(python: Path) -> None:
    with serving_messages("sleeps", python, threads=2) as replica, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(replica.predict, seconds=1.5) for _ in range(2)]
        poll(lambda: replica.in_flight == 2)
        answer = replica.predict(seconds=0)
        assert (answer.status, answer.json["status"]["reason"]) == (429, "BUSY")
        assert replica.answers()  # busy, and well
        assert [future.result().status for future in running] == [200, 200]
        assert replica.predict(seconds=0).status == 200


def test_what_a_microservice_left_running_counts_still(python: Path) -> None:
    with serving_messages("sleeps", python) as replica, ThreadPoolExecutor(1) as pool:
        running = pool.submit(replica.predict, seconds=6)
        poll(lambda: replica.in_flight == 1)
        replica.microservice()[0].kill()
        assert running.exception() is not None
        poll(replica.answers, within=20)
        poll(lambda: replica.predict(seconds=0).json["status"]["reason"] == "BUSY")
        poll(lambda: replica.predict(seconds=0).status == 200)


def test_a_replica_that_is_told_to_end_finishes_its_predictions(python: Path) -> None:
    with serving_messages("sleeps", python, drain_s=20) as replica, ThreadPoolExecutor(1) as pool:
        running = pool.submit(replica.predict, seconds=6)
        poll(lambda: replica.in_flight == 1)
        assert replica.process is not None
        replica.process.send_signal(signal.SIGTERM)
        poll(lambda: not replica.answers())
        with contextlib.suppress(OSError):  # nobody can reach it any more
            answer = replica.predict(seconds=0)
            assert (answer.status, answer.json["status"]["reason"]) == (503, "NOT_READY")
        assert running.result().status == 200
        replica.process.wait(10)
        replica.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_replica_that_ends_at_its_work(python: Path, number: signal.Signals) -> None:
    replica = AsyncReplica("sleeps", python=python)
    with replica, ThreadPoolExecutor(1) as pool:
        running = pool.submit(replica.ready().predict, seconds=60)  # type: ignore[attr-defined]
        poll(lambda: replica.in_flight == 1)
        replica.end(number)
        assert running.exception() is not None or running.result().status == 503


# ---- the start -------------------------------------------------------------------------------------------------------


def test_a_replica_is_ready_once_both_are(python: Path) -> None:
    with AsyncReplica("loads_slowly_in_one_worker", python=python, workers=2) as replica:
        poll(lambda: Path(f"{replica.socket}.seldon.starting").exists(), within=20)
        assert not Path(f"{replica.socket}.seldon").exists()
        (replica.source / "go").touch()
        replica.ready()
        assert replica.answers()


def test_on_a_port_the_microservice_takes_no_work_before_the_model_is_loaded(python: Path) -> None:
    replica = AsyncReplica("loads_slowly_in_one_worker", python=python, port=free_port(), workers=2)
    replica.environment["DOMINO_PORT"] = str(free_port())
    with replica:

        def reason() -> object:
            try:
                return replica.predict().json["status"]["reason"]
            except OSError:
                return None

        poll(lambda: reason() == "NOT_READY", within=20)
        assert replica.ask("GET", "/ready").status == 503
        (replica.source / "go").touch()
        replica.ready()
        assert replica.answers()
        assert replica.predict().status == 200


def test_a_replica_without_seldon_core_says_so(tmp_path: Path) -> None:
    with AsyncReplica("adds", python=tmp_path / "nothing") as replica:
        status = replica.wait("failed")
        assert "needs seldon-core" in status["reason"]


def test_an_environment_without_seldon_core_ends_the_start() -> None:
    with AsyncReplica("adds", python=Path(sys.executable)) as replica:
        assert "No module named 'seldon_core'" in replica.wait("failed")["reason"]


def test_a_microservice_that_cannot_start_ends_the_start(python: Path) -> None:
    first = AsyncReplica("adds", python=python, port=free_port())
    second = AsyncReplica("adds", python=python, port=first.port)
    for replica in (first, second):
        replica.environment["DOMINO_PORT"] = str(free_port())
    with first:
        first.ready()
        with second:
            assert "Address already in use" in second.wait("failed")["reason"]


# ---- Seldon Core's own client ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_to_all(python: Path) -> Iterator[AsyncReplica]:
    """A replica as in a Seldon Core installation: on ports, without tokens."""
    replica = AsyncReplica("adds", python=python, port=free_port())
    replica.config["tokens"] = None
    replica.environment |= {
        "DOMINO_AUTH": "none", "DOMINO_PORT": str(free_port()), "DOMINO_SELDON_PORT": "",
        "PREDICTIVE_UNIT_HTTP_SERVICE_PORT": str(replica.port),
        "PREDICTIVE_UNIT_METRICS_SERVICE_PORT": str(free_port()),
        "PREDICTIVE_UNIT_METRICS_ENDPOINT": "/prometheus",
    }  # fmt: skip
    with replica:
        replica.ready()
        yield replica


def test_seldon_cores_own_client_is_served(open_to_all: AsyncReplica, python: Path) -> None:
    ended = subprocess.run(
        [python, "-W", "ignore", "-c", CLIENT, f"127.0.0.1:{open_to_all.port}"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, third, wrong = json.loads(ended.stdout.splitlines()[-1])
    assert first[:2] == second[:2] == third[:2] == [True, 3.0]
    assert wrong[0] is False
    assert "'a'" in wrong[2]


def test_seldon_cores_own_tester_is_served(open_to_all: AsyncReplica, python: Path, tmp_path: Path) -> None:
    feature = {"dtype": "FLOAT", "ftype": "continuous", "range": [0, 1]}
    (tmp_path / "contract.json").write_text(
        json.dumps({"features": [{"name": name, **feature} for name in ("a", "b")], "targets": []})
    )
    tester = python.with_name("seldon-core-microservice-tester")
    ended = subprocess.run(
        [tester, tmp_path / "contract.json", "127.0.0.1", str(open_to_all.port), "-p"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "sum" in ended.stdout


def test_health_and_metrics_need_no_token_there(open_to_all: AsyncReplica) -> None:
    assert open_to_all.ask("GET", "/health/status", authorization="").status == 200
    assert open_to_all.send({"jsonData": {"data": {"a": 1}}}, authorization="").status == 200
    scraped = AsyncReplica.__new__(AsyncReplica)
    scraped.port = int(open_to_all.environment["PREDICTIVE_UNIT_METRICS_SERVICE_PORT"])
    assert "domino_predictions_total" in scraped.ask("GET", "/prometheus", authorization="").body.decode()
