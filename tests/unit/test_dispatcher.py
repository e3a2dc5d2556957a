"""A dispatcher, with a stand-in for replicas that does as it is asked."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import http.server
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.gateway.exchange import _socket_for
from mlflow_domino.gateway.webhook import Told, tell
from mlflow_domino.queue.prediction import Delivery
from mlflow_domino.queue.turn import LEASE_S
from tests.asynchronous import OWN, E, Gateway, StandIn, gateway
from tests.conftest import eventually, free_port
from tests.postgresql import PostgreSQL, postgresql

F = "f" * 24


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    server = postgresql()
    yield server
    server.remove()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Gateway]:
    with gateway(tmp_path) as made:
        made.publish(made.stand_in())
        made.dispatch()
        yield made


def test_a_prediction_reaches_a_replica_and_its_answer_the_caller(served: Gateway) -> None:
    prediction_id = served.submit(x=1.0)
    found = served.ended(prediction_id)
    assert (found["status"], found["result"]) == ("succeeded", {"echo": {"x": 1.0}, "attempt": 1})
    assert found["version"] == 1
    (message,) = served.stand_ins[0].asked
    assert message["meta"]["puid"] == prediction_id
    assert message["meta"]["tags"]["timeout_ms"] == 60_000
    assert served.stand_ins[0].tokens == {f"Bearer {OWN}"}


def test_waiting_for_the_answer_takes_one_call(served: Gateway) -> None:
    answer = served.call("POST", json={"parameters": {"x": 1}}, headers={"Prefer": "wait=20"})
    assert answer.json["status"] == "succeeded"
    assert answer.json["result"]["echo"] == {"x": 1}


def test_the_models_own_errors_are_final(served: Gateway) -> None:
    for do in ("failing", "refused"):
        found = served.ended(served.submit(do=do))
        assert (found["status"], found["errors"], found["attempts"]) == ("failed", [f"it is {do}"], [])


@pytest.mark.parametrize("do", ["drop once", "lost once", "late once", "loading once", "busy once"])
def test_what_is_not_the_models_own_error_is_tried_again(served: Gateway, do: str) -> None:
    found = served.ended(served.submit(do=do))
    assert (found["status"], found["result"]["attempt"]) == ("succeeded", 2)
    assert len(found["attempts"]) == (0 if do in ("busy once", "loading once") else 1)


def test_after_the_last_attempt_a_prediction_is_failed_with_its_history(served: Gateway) -> None:
    served.publish(served.stand_ins[0], max_attempts=2)
    found = served.ended(served.submit(do="drop"))
    assert found["status"] == "failed"
    assert "2 attempts" in found["errors"][0]
    assert [attempt["version"] for attempt in found["attempts"]] == [1, 1]
    assert "ended before it had answered" in found["attempts"][0]["reason"]


def test_what_never_began_uses_up_no_attempt(served: Gateway) -> None:
    (replica,) = served.stand_ins
    served.publish(replica, max_attempts=1)
    prediction_id = served.submit(do="loading")
    eventually(lambda: len(replica.seen) >= 4)
    found = served.show(prediction_id)
    assert (found["status"], found["attempts"]) == ("queued", [])


def test_a_replica_that_says_that_it_is_not_ready_is_left_alone_until_it_is(served: Gateway) -> None:
    (replica,) = served.stand_ins
    served.publish(replica, max_attempts=1)
    replica.ready = False
    prediction_id = served.submit(do="loading once")
    eventually(lambda: replica.looks >= 3)
    assert len(replica.seen) == 1
    replica.ready = True
    found = served.ended(prediction_id)
    assert (found["status"], found["attempts"]) == ("succeeded", [])


def test_an_answer_that_is_no_answer_is_tried_again(served: Gateway) -> None:
    served.publish(served.stand_ins[0], max_attempts=1)
    found = served.ended(served.submit(do="nonsense"))
    assert "not in Seldon's protocol" in found["errors"][0]


def test_a_result_that_is_too_large_is_a_failure_that_says_so(served: Gateway) -> None:
    fits = served.ended(served.submit(do="big", size=10238))
    assert fits["status"] == "succeeded"
    found = served.ended(served.submit(do="big", size=10239))
    assert found["status"] == "failed"
    assert found["errors"][0].startswith("the result has 10241 bytes, more than 10240 (async_max_result")


def test_a_run_past_its_time_is_failed(served: Gateway) -> None:
    served.publish(served.stand_ins[0], timeout_s=1.0)
    found = served.ended(served.submit(do="late", s=1))
    assert found["errors"] == ["it ran for longer than 1 s (async_timeout_s)"]


def test_a_machine_that_is_gone_does_not_hold_a_prediction_until_its_time_is_over() -> None:
    speaking, _ = _socket_for("10.255.255.1:80")
    with speaking:
        assert speaking.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, every, times = (
            speaking.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
    assert idle + every * times <= LEASE_S


def test_replicas_never_get_more_than_they_run_and_all_of_them_get_some(tmp_path: Path) -> None:
    with gateway(tmp_path) as made:
        replicas = [made.stand_in(str(n)) for n in range(3)]
        made.publish(*replicas, limit=2)
        ids = [made.submit(do="sleep", s=0.05) for _ in range(60)]
        made.dispatch()
        for one in ids:
            assert made.ended(one)["status"] == "succeeded"
        assert [replica.most for replica in replicas] == [2, 2, 2]
        assert sum(len(replica.seen) for replica in replicas) == 60


def test_a_slow_endpoint_does_not_hold_up_another(tmp_path: Path) -> None:
    with gateway(tmp_path) as made:
        slow, quick = made.stand_in("slow"), made.stand_in("quick")
        made.publish(slow)
        made.publish(quick, endpoint_id=F)
        held = [made.submit(do="wait") for _ in range(20)]
        made.dispatch()
        eventually(lambda: slow.most == 2)
        assert made.ended(made.submit(endpoint_id=F, x=1), F)["status"] == "succeeded"
        assert made.show(held[-1])["status"] == "queued"
        assert slow.most == 2


def test_urgent_predictions_overtake(tmp_path: Path) -> None:
    with gateway(tmp_path) as made:
        replica = made.stand_in()
        made.publish(replica, limit=1)
        late = [made.submit(do="sleep", s=0.02, n=n) for n in range(5)]
        urgent = made.call("POST", json={"parameters": {}, "priority": 0}).json["asyncPredictionId"]
        made.dispatch()
        made.ended(late[-1])
        assert replica.seen[0][0] == urgent


def test_a_replica_that_is_not_there_gets_its_work_when_it_comes(tmp_path: Path) -> None:
    with gateway(tmp_path) as made:
        replica = made.stand_in()
        made.publish(replica)
        replica.close()
        made.dispatch()
        prediction_id = made.submit(x=1)
        eventually(lambda: "dispatching" in made.log.read_text())
        eventually(lambda: made.show(prediction_id)["phase"] == "queued")
        again = StandIn(replica.path)
        made.stand_ins[0] = again
        found = made.ended(prediction_id)
        assert (found["status"], found["attempts"]) == ("succeeded", [])


def test_after_an_update_work_goes_to_the_new_version_and_what_runs_ends_on_the_old_one(tmp_path: Path) -> None:
    with gateway(tmp_path) as made:
        old, new = made.stand_in("old"), made.stand_in("new")
        made.publish(old, limit=1)
        made.dispatch()
        running = made.submit(do="wait")
        waiting = [made.submit(n=n) for n in range(5)]
        eventually(lambda: old.running)
        made.publish(new, version=2)
        for one in waiting:
            assert made.ended(one)["version"] == 2
        old.released.set()
        found = made.ended(running)
        assert (found["status"], found["version"]) == ("succeeded", 1)
        assert len(old.seen) == 1


def test_what_an_update_cuts_off_runs_again_on_the_new_version_without_a_strike(tmp_path: Path) -> None:
    with gateway(tmp_path) as made:
        old, new = made.stand_in("old"), made.stand_in("new")
        made.publish(old, max_attempts=1)
        made.dispatch()
        prediction_id = made.submit(do="wait")
        eventually(lambda: old.running)
        made.publish(new, version=2)
        new.released.set()
        eventually(lambda: made.ended(made.submit(x=1))["version"] == 2)
        old.stoppable = True
        old.stop(prediction_id)  # it answers that it is not ready, as a replica that ends
        found = made.ended(prediction_id)
        assert (found["status"], found["version"], len(found["attempts"])) == ("succeeded", 2, 1)


@pytest.mark.parametrize("stoppable", [True, False])
def test_what_takes_longer_than_the_drain_runs_again_though_the_old_replica_goes_on(
    tmp_path: Path, stoppable: bool
) -> None:
    with gateway(tmp_path) as made:
        old, new = made.stand_in("old"), made.stand_in("new")
        old.stoppable = stoppable
        new.released.set()
        made.publish(old, max_attempts=1, drain_s=0.2)
        made.dispatch()
        prediction_id = made.submit(do="wait")
        eventually(lambda: old.running)
        made.publish(new, version=2)
        found = made.ended(prediction_id)
        assert (found["status"], found["version"], len(found["attempts"])) == ("succeeded", 2, 1)
        old.released.set()
        assert made.ended(prediction_id)["result"]["attempt"] == 2


def test_a_killed_dispatchers_work_is_taken_over_at_once_and_its_late_answer_changes_nothing(served: Gateway) -> None:
    (replica,) = served.stand_ins
    prediction_id = served.submit(do="wait")
    eventually(lambda: replica.running)
    served.dispatchers[0].kill()
    served.dispatchers[0].wait()
    served.dispatch()
    eventually(lambda: len(replica.seen) == 2)
    assert [attempt for _, attempt in replica.seen] == [1, 2]
    replica.released.set()
    found = served.ended(prediction_id)
    assert found["result"]["attempt"] == 2
    assert [attempt["reason"] for attempt in found["attempts"]] == ["its dispatcher was lost"]


def test_a_dispatcher_that_is_told_to_end_stores_what_comes_and_gives_back_the_rest(served: Gateway) -> None:
    ids = [served.submit(do="sleep", s=0.3) for _ in range(6)]
    eventually(lambda: served.stand_ins[0].running)
    served.dispatchers[0].send_signal(signal.SIGINT)
    assert served.dispatchers[0].wait(15) == 0
    phases = [served.show(one)["phase"] for one in ids]
    assert set(phases) <= {"succeeded", "queued"}
    served.dispatch()
    for one in ids:
        assert served.ended(one)["attempts"] == []
    assert len(served.stand_ins[0].seen) == 6


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"fraction": 0.25, "text": "1 of 4"}, {"fraction": 0.25, "text": "1 of 4"}),
        ({"fraction": 7, "text": 7, "more": 1}, {"fraction": None, "text": "7"}),
        ({}, {"fraction": None, "text": ""}),
    ],
)
def test_how_far_a_prediction_is_can_be_seen_while_it_runs(served: Gateway, said: object, told: object) -> None:
    (replica,) = served.stand_ins
    slow, other = served.submit(do="wait"), served.submit(do="wait")
    replica.progress = {slow: said, "another": {"fraction": 1}, other: "nothing"}
    eventually(lambda: served.show(slow)["progress"] == told)
    assert served.show(other)["progress"] is None
    listed = {one["asyncPredictionId"]: one.get("progress") for one in served.call("GET").json["predictions"]}
    assert listed == {slow: told, other: None}
    replica.released.set()
    assert served.ended(slow)["progress"] == told


@pytest.mark.parametrize("said", [None, ["what is this?"]])
def test_a_replica_that_knows_of_no_progress_answers_all_the_same(served: Gateway, said: object) -> None:
    (replica,) = served.stand_ins
    replica.progress = said
    prediction_id = served.submit(do="wait")
    eventually(lambda: replica.progress_asked >= 2)
    replica.released.set()
    found = served.ended(prediction_id)
    assert (found["status"], found["progress"]) == ("succeeded", None)


def test_a_running_prediction_is_stopped_or_says_that_it_was_not(served: Gateway) -> None:
    (replica,) = served.stand_ins
    prediction_id = served.submit(do="wait")
    eventually(lambda: replica.running)
    answer = served.call("DELETE", f"/{prediction_id}")
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "RUNNING")
    replica.stoppable = True
    answer = served.call("DELETE", f"/{prediction_id}")
    assert answer.status_code == 200
    found = served.ended(prediction_id)
    assert (found["phase"], found["errors"]) == ("cancelled", ["cancelled while it ran"])
    assert len(replica.seen) == 1
    done = served.submit(x=1)
    served.ended(done)
    answer = served.call("DELETE", f"/{done}")
    assert (answer.status_code, answer.json["error"]["code"]) == (409, "FINISHED")


def test_a_running_prediction_is_stopped_by_whichever_gateway_the_caller_reaches(
    tmp_path: Path, server: PostgreSQL
) -> None:
    with gateway(tmp_path, url=server.url) as made:
        replica = made.stand_in()
        replica.stoppable = True
        made.publish(replica)
        made.dispatch("d._BEAT_S = 3600")
        prediction_id = made.submit(do="wait")
        eventually(lambda: replica.running)
        made.access = dataclasses.replace(made.access, wake=str(tmp_path / "another"))  # nobody hears the bell
        made.write()
        answer = made.call("DELETE", f"/{prediction_id}")
        assert (answer.status_code, answer.json["errors"]) == (200, ["cancelled while it ran"])


def test_what_was_not_heard_is_found_all_the_same(served: Gateway) -> None:
    eventually(lambda: "dispatching" in served.log.read_text())
    served.access = dataclasses.replace(served.access, wake=str(served.folder / "nobody"))
    served.write()
    assert served.ended(served.submit(x=1))["status"] == "succeeded"


def test_a_stopped_endpoints_queue_waits_until_it_starts(served: Gateway) -> None:
    (replica,) = served.stand_ins
    held = [served.submit(do="wait") for _ in range(2)]
    waiting = served.submit(x=1)
    eventually(lambda: len(replica.running) == 2)
    served.publish(version=None, stopped=True)
    replica.released.set()
    for one in held:
        served.ended(one)
    assert served.show(waiting)["phase"] == "queued"
    served.publish(replica, version=1, stopped=False)
    assert served.ended(waiting)["status"] == "succeeded"


def test_a_deleted_endpoint_leaves_nothing(served: Gateway) -> None:
    prediction_id = served.submit(do="wait")
    eventually(lambda: served.stand_ins[0].running)
    before = dict(served.endpoints)
    served.endpoints.clear()
    served.write()
    assert served.call("DELETE", token="m" * 64).status_code == 204
    served.stand_ins[0].released.set()
    served.endpoints = before
    served.write()
    assert served.ended(served.submit(x=1))["status"] == "succeeded"
    assert served.call("GET", f"/{prediction_id}").status_code == 404
    assert served.queue.counts()[E]["fenced"] == 0


def test_what_runs_of_a_deleted_endpoint_is_stopped_when_it_has_had_its_time(served: Gateway) -> None:
    (replica,) = served.stand_ins
    replica.stoppable = True
    served.publish(replica, drain_s=0.2)
    served.submit(do="wait")
    eventually(lambda: replica.running)
    served.endpoints.clear()
    served.write()
    eventually(lambda: not replica.running)


def test_old_predictions_are_removed(served: Gateway) -> None:
    served.publish(served.stand_ins[0], keep_s=1.0)
    ids = [served.submit(n=n) for n in range(3)]
    for one in ids:
        served.queue.get(E, one)
    eventually(lambda: served.queue.find(E) == [])
    answer = served.call("GET", f"/{ids[0]}")
    assert (answer.status_code, answer.json["error"]["code"]) == (404, "EXPIRED")


def test_metrics_count_what_happened(served: Gateway) -> None:
    for do in ("echo", "failing", "drop once"):
        served.ended(served.submit(do=do))
    text = served.client.get("/metrics", headers={"Authorization": f"Bearer {'m' * 64}"}).text
    for line in ('predictions_total{endpoint="%s",outcome="succeeded"} 2', 'predictions_total{endpoint="%s",outcome="failed"} 1',
                 'retries_total{endpoint="%s"} 1', 'run_seconds_count{endpoint="%s"} 3', 'running{endpoint="%s"} 0'):  # fmt: skip
        assert f"domino_async_{line % E}\n" in text
    counts = served.call("GET", "?depth=true").json["counts"]
    assert {name: counts[name] for name in ("succeeded", "failed", "retried", "expired", "webhook_failures")} == {
        "succeeded": 2, "failed": 1, "retried": 1, "expired": 0, "webhook_failures": 0,
    }  # fmt: skip
    assert counts["mean_time_in_queue_s"] > 0


# ---- webhooks ------------------------------------------------------------------------------------------------------


class Receiver:
    """Takes webhooks, with the statuses that it is given."""

    def __init__(self, statuses: list[int]) -> None:
        self.port = free_port()
        self.calls: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = statuses.pop(0) if statuses else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", "0")
                self.end_headers()
                receiver.calls.append((dict(self.headers), body))

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver([500])
    yield receiver
    receiver.close()


def allow_private(served: Gateway) -> None:
    served.access = dataclasses.replace(served.access, private_webhooks=True)
    served.write()


def test_a_webhook_is_told_with_mlflows_signature_until_it_answers(served: Gateway, receiver: Receiver) -> None:
    allow_private(served)
    body = {"parameters": {"x": 1}, "webhook": {"url": receiver.url, "secret": "geheim"}}
    prediction_id = served.call("POST", json=body).json["asyncPredictionId"]
    eventually(lambda: (served.show(prediction_id)["webhook"] or {})["state"] == "succeeded", within=20)
    (first, _), (headers, raw) = receiver.calls
    document = json.loads(raw)
    assert (document["entity"], document["action"]) == ("async_prediction", "succeeded")
    assert document["data"]["asyncPredictionId"] == prediction_id
    assert document["data"]["result"]["echo"] == {"x": 1}
    assert headers["X-MLflow-Delivery-Id"] == first["X-MLflow-Delivery-Id"]
    signed = f"{headers['X-MLflow-Delivery-Id']}.{headers['X-MLflow-Timestamp']}.".encode() + raw
    wanted = base64.b64encode(hmac.new(b"geheim", signed, hashlib.sha256).digest()).decode()
    assert headers["X-MLflow-Signature"] == f"v1,{wanted}"
    told = served.show(prediction_id)["webhook"]
    assert (told["attempts"], told["reason"]) == (2, None)
    assert "geheim" not in json.dumps(told)


def test_a_webhook_that_leads_elsewhere_is_not_followed(served: Gateway) -> None:
    allow_private(served)
    elsewhere = Receiver([302])
    prediction_id = served.call("POST", json={"parameters": {}, "webhook": elsewhere.url}).json["asyncPredictionId"]
    eventually(lambda: served.show(prediction_id)["webhook"]["state"] == "failed")
    elsewhere.close()
    assert served.show(prediction_id)["webhook"]["reason"] == "it answered 302"
    assert len(elsewhere.calls) == 1


def test_a_name_of_a_private_address_is_never_called(receiver: Receiver) -> None:
    def delivery(url: str) -> Delivery:
        return Delivery("d", "p", E, url, "", 1, 0, {"status": "succeeded"})

    told = tell(delivery(f"http://localhost:{receiver.port}/"), private=False)
    assert told == Told("localhost has a private address; webhook_private of the data plane allows that")
    assert receiver.calls == []
    assert tell(delivery(f"http://localhost:{receiver.port}/"), private=True).reason == "it answered 500"
    assert tell(delivery("http://127.0.0.1:1/"), private=True).again
    assert tell(delivery("http://no-such-name.invalid/"), private=False).again
