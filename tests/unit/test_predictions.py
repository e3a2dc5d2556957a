"""The asynchronous API by itself, without replicas."""

from __future__ import annotations

import base64
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.gateway.predictions import PATH
from mlflow_domino.home import write_json
from mlflow_domino.queue.prediction import new_prediction_id, now_ms
from mlflow_domino.secret import digest
from tests.asynchronous import OWN, TOKEN, E, Gateway, gateway


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Gateway]:
    with gateway(tmp_path) as made:
        made.publish()
        yield made


def error(answer) -> tuple[int, str]:
    return answer.status_code, answer.json["error"]["code"]


def test_a_submission_and_a_poll_say_what_domino_says_and_nothing_else(api: Gateway) -> None:
    answer = api.call("POST", json={"parameters": {"x": 1}})
    assert answer.status_code == 200
    assert set(answer.json) == {"asyncPredictionId"}
    poll = api.call("GET", f"/{answer.json['asyncPredictionId']}")
    assert (poll.status_code, poll.json) == (200, {**answer.json, "status": "queued"})
    assert poll.headers["Retry-After"] == "1"


@pytest.mark.parametrize("token", ["", "x", TOKEN[:-1], TOKEN + "t"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", ""), ("GET", ""), ("GET", "/1"), ("DELETE", "/1"), ("POST", "/1/retry")]
)
def test_nobody_gets_anywhere_without_a_token(api: Gateway, token: str, method: str, path: str) -> None:
    answer = api.call(method, path, token=token)
    assert error(answer) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"].startswith("Basic")


def test_bearer_and_basic_and_the_gateways_own_token_all_work(api: Gateway) -> None:
    basic = base64.b64encode(f"{TOKEN}:{TOKEN}".encode()).decode()
    other = base64.b64encode(f"{TOKEN}:x".encode()).decode()
    for value, status in ((f"Basic {basic}", 200), (f"bearer {OWN}", 200), (f"Basic {other}", 401), ("Basic é", 401)):
        assert api.client.get(f"{PATH}/{E}", headers={"Authorization": value}).status_code == status


def test_a_revoked_token_is_refused_at_once(api: Gateway) -> None:
    assert api.call("GET").status_code == 200
    write_json(api.folder / "tokens.json", {"tokens": [{"id": "b", "sha256": digest("n" * 64)}]})
    assert api.call("GET").status_code == 401
    assert api.call("GET", token="n" * 64).status_code == 200
    (api.folder / "tokens.json").write_text("{")
    assert api.call("GET", token="n" * 64).status_code == 401


def test_an_unknown_endpoint_and_an_unknown_prediction_are_not_found(api: Gateway) -> None:
    for endpoint_id in ("f" * 24, "x", "..%2f..", "%00"):
        assert error(api.call("GET", endpoint_id=endpoint_id))[0] == 404
    for prediction_id in ("1", "%00", "a" * 5000, new_prediction_id(now_ms())):
        assert error(api.call("GET", f"/{prediction_id}")) == (404, "NOT_FOUND")
        assert error(api.call("DELETE", f"/{prediction_id}")) == (404, "NOT_FOUND")


def test_what_was_kept_for_long_enough_has_expired_and_says_so(api: Gateway) -> None:
    answer = api.call("GET", f"/{new_prediction_id(now_ms() - 2_000_000)}")
    assert error(answer) == (404, "EXPIRED")
    assert "1000 s (async_keep_s)" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "not JSON"), (b"[", "not JSON"), (b'{"parameters": {"x": NaN}}', "NaN"), (b"[1]", "parameters"),
        (b"{}", "parameters"), (b'{"parameters": 1}', "parameters"), (b'{"data": [1]}', "data"),
        (b'{"parameters": {}, "data": {}}', "parameters"), (b'{"parameters": {}, "priorty": 1}', "priorty"),
        (b'{"parameters": {}, "priority": 3}', "priority"), (b'{"parameters": {}, "priority": true}', "priority"),
        (b'{"parameters": {}, "priority": [1]}', "priority"), (b'{"parameters": {}, "max_time_in_queue_s": 0}', "max_time"),
        (b'{"parameters": {}, "max_time_in_queue_s": 1001}', "async_keep_s"), (b"\xff\xfe{", "not JSON"),
        (b'{"parameters": {}, "max_time_in_queue_s": "1"}', "max_time"), (b"[" * 6000, "not JSON"),
        (b'{"parameters": {}, "webhook": 1}', "webhook"), (b'{"parameters": {}, "webhook": {"uri": ""}}', "webhook"),
        (b'{"parameters": {}, "webhook": "http://example.com"}', "https://"),
        (b'{"parameters": {}, "webhook": "https://127.0.0.1/x"}', "webhook_private"),
        (b'{"parameters": {}, "webhook": "https://[::1]/x"}', "webhook_private"),
        (b'{"parameters": {}, "webhook": "https://169.254.169.254/"}', "webhook_private"),
        (b'{"parameters": {}, "webhook": "https://localhost/x"}', "webhook_private"),
        (b'{"parameters": {}, "webhook": "https://u:p@example.com"}', "password"),
        (b'{"parameters": {}, "webhook": "https://[::1/x"}', "no URL"),
        (b'{"parameters": {}, "webhook": {"url": "https://example.com", "secret": 1}}', "secret"),
    ],
)  # fmt: skip
def test_a_body_that_makes_no_sense_is_refused_by_name(api: Gateway, body: bytes, named: str) -> None:
    answer = api.call("POST", data=body)
    assert error(answer) == (400, "INVALID_INPUT")
    assert named in answer.json["error"]["message"]
    assert api.call("GET").json["predictions"] == []


def test_what_the_caller_wrote_is_kept_to_the_letter(api: Gateway) -> None:
    body = '{"parameters": {"big": 12345678901234567890123, "f": 1.0, "e": 1E2, "s": "\\ud800 é"}}'
    prediction_id = api.call("POST", data=body.encode()).json["asyncPredictionId"]
    found = api.queue.get(E, prediction_id)
    assert found is not None
    assert found.request == body


def test_a_large_body_is_refused_naming_the_limit(api: Gateway) -> None:
    frame = len('{"parameters": {"x": ""}}')
    assert api.call("POST", data='{"parameters": {"x": "%s"}}' % ("a" * (10240 - frame))).status_code == 200
    answer = api.call("POST", data='{"parameters": {"x": "%s"}}' % ("a" * (10241 - frame)))
    assert error(answer) == (413, "PAYLOAD_TOO_LARGE")
    assert "10240 bytes (async_max_request" in answer.json["error"]["message"]
    api.access = dataclasses.replace(api.access, max_request=20000)
    api.write()
    assert api.call("POST", data='{"parameters": {"x": "%s"}}' % ("a" * 15000)).status_code == 200


def test_a_stopped_endpoint_takes_nothing_and_still_tells(api: Gateway) -> None:
    prediction_id = api.submit(x=1)
    api.publish(stopped=True, version=None)
    answer = api.call("POST", json={"parameters": {}})
    assert error(answer) == (503, "NOT_READY")
    assert "stopped" in answer.json["error"]["message"]
    assert answer.headers["Retry-After"]
    assert api.call("GET", f"/{prediction_id}").json["status"] == "queued"


def test_a_full_queue_says_so_and_takes_no_more(api: Gateway) -> None:
    api.publish(max_queued=3)
    key = {"Idempotency-Key": "first"}
    first = api.call("POST", json={"parameters": {"x": 1}}, headers=key).json
    for _ in range(2):
        api.submit(x=1)
    assert api.call("POST", json={"parameters": {"x": 1}}, headers=key).json == first
    assert error(api.call("POST", json={"parameters": {"x": 2}}, headers=key)) == (409, "KEY_REUSED")
    answer = api.call("POST", json={"parameters": {}})
    assert error(answer) == (429, "TOO_MANY_REQUESTS")
    assert "async_max_queued" in answer.json["error"]["message"]
    assert answer.headers["Retry-After"]


def test_an_idempotency_key_names_a_request(api: Gateway) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first = api.call("POST", json={"parameters": {"a": 1, "b": 2}}, headers=headers)
    again = api.call("POST", data='{"parameters":{"b":2,"a":1}}', headers=headers)
    assert first.json == again.json
    assert error(api.call("POST", json={"parameters": {"a": 2}}, headers=headers)) == (409, "KEY_REUSED")
    assert error(api.call("POST", json={"parameters": {}}, headers={"Idempotency-Key": "a b"})) == (
        400,
        "INVALID_INPUT",
    )
    assert len(api.call("GET").json["predictions"]) == 1


def test_what_waits_is_cancelled_and_old_clients_see_a_failure(api: Gateway) -> None:
    prediction_id = api.submit(x=1)
    answer = api.call("DELETE", f"/{prediction_id}")
    assert answer.status_code == 200
    poll = api.call("GET", f"/{prediction_id}").json
    assert (poll["status"], poll["errors"]) == ("failed", ["cancelled before it ran"])
    assert api.show(prediction_id)["phase"] == "cancelled"
    assert api.call("DELETE", f"/{prediction_id}").status_code == 200
    assert api.call("POST", f"/{prediction_id}/retry").json["status"] == "queued"
    assert error(api.call("POST", f"/{prediction_id}/retry")) == (409, "NOT_FAILED")


def test_predictions_are_listed_in_pages_and_by_status(api: Gateway) -> None:
    ids = [api.submit(n=n) for n in range(5)]
    api.call("DELETE", f"/{ids[0]}")
    page = api.call("GET", "?limit=3").json
    rest = api.call("GET", f"?limit=3&before={page['next']}").json
    assert rest["next"] is None
    listed = [one["asyncPredictionId"] for one in (*page["predictions"], *rest["predictions"])]
    assert sorted(listed, reverse=True) == listed
    assert set(listed) == set(ids)
    for status, count in (("queued", 4), ("failed", 1), ("cancelled", 1), ("running", 0), ("succeeded", 0)):
        assert len(api.call("GET", f"?status={status}").json["predictions"]) == count
    told = api.call("GET", "?depth=true").json
    assert (told["depth"]["queued"], told["depth"]["running"]) == (4, 0)
    assert (told["counts"]["cancelled"], told["counts"]["succeeded"]) == (1, 0)
    assert told["counts"]["mean_time_in_queue_s"] is None
    for query in ("?status=x", "?limit=0", "?limit=1001", "?limit=%C2%B2", "?before=x", "?before=%00"):
        assert error(api.call("GET", query)) == (400, "INVALID_INPUT")


def test_details_tell_the_position_and_the_times(api: Gateway) -> None:
    api.submit(n=0)
    second = api.show(api.submit(n=1))
    assert second["position"] in (0, 1)  # two of one millisecond have no order
    assert second["phase"] == "queued"
    assert second["attempts"] == []
    assert second["submitted"].endswith("Z")


def test_waiting_ends_with_the_time_and_only_some_threads_wait(api: Gateway) -> None:
    began = time.monotonic()
    answer = api.call("POST", json={"parameters": {}}, headers={"Prefer": "respond-async, wait=1"})
    assert time.monotonic() - began >= 1
    assert answer.json["status"] == "queued"
    assert answer.headers["Preference-Applied"] == "wait=1"
    assert set(api.call("POST", json={"parameters": {}}, headers={"Prefer": "wait=x"}).json) == {"asyncPredictionId"}


def test_while_the_database_cannot_be_used_nothing_is_accepted(api: Gateway) -> None:
    api.access = dataclasses.replace(api.access, database=str(api.folder / "other"))
    (api.folder / "other").write_text("postgresql://domino:geheim@127.0.0.1:1/nothing")
    api.write()
    answer = api.call("POST", json={"parameters": {}})
    assert error(answer) == (503, "QUEUE_UNAVAILABLE")
    assert answer.headers["Retry-After"] == "2"
    assert "geheim" not in answer.text


def test_forgetting_an_endpoint_needs_the_management_token(api: Gateway) -> None:
    prediction_id = api.submit(x=1)
    assert api.call("DELETE").status_code == 401
    assert api.call("DELETE", token="m" * 64).status_code == 204
    assert api.call("GET", f"/{prediction_id}").status_code == 404


def test_metrics_tell_of_the_queue(api: Gateway) -> None:
    api.submit(x=1)
    api.submit(x=2)
    text = api.client.get("/metrics", headers={"Authorization": f"Bearer {'m' * 64}"}).text
    assert f'domino_async_queue_depth{{endpoint="{E}"}} 2\n' in text
    assert "domino_async_queue_up 1\n" in text
    assert f'domino_async_time_in_queue_seconds_bucket{{endpoint="{E}",le="+Inf"}} 0\n' in text
