"""Replicas of projects, under real uWSGI."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import sys
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
import pytest

from tests.replica import TOKEN, Answer, Replica, basic, poll, serving


@pytest.fixture(scope="module")
def adder() -> Iterator[Replica]:
    with serving("adds", max_body=10_000) as replica:
        yield replica


def restarts(replica: Replica) -> float:
    return sum(v for k, v in replica.metrics().items() if k.startswith("domino_worker_restarts"))


def test_a_function_answers_in_dominos_envelope(adder: Replica) -> None:
    answer = adder.post({"data": {"a": 1}})
    assert answer.status == 200
    document = answer.json
    assert document["result"] == {"sum": 3}
    assert re.fullmatch("[A-Z0-9]{16}", document["request_id"])
    assert isinstance(document["model_time_in_ms"], int)
    assert isinstance(document["timing"], float)
    assert document["release"] == {"harness_version": "0.1", "model_version": "v" * 24, "model_version_number": 3}


def test_parameters_are_positional(adder: Replica) -> None:
    assert adder.post({"parameters": [4, 5]}).result == {"sum": 9}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b"{}", "neither is"),
        (b'{"data": {}, "parameters": []}', "both are"),
        (b'{"data": ""}', "`data` must be an object, not text"),
        (b'{"data": {"a": NaN}}', "NaN is no JSON"),
        (b'{"data": {"a": 1, "start": 2}}', "'start'"),
        (b'{"data": {}}', "'a'"),
        (b'{"parameters": [1, 2, 3]}', "too many positional"),
        (b'{"data": {"a": 1}, "dta": 1}', "'dta'"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_its_reason(adder: Replica, body: bytes, words: str) -> None:
    answer = adder.post(body)
    assert answer.status == 400
    assert words in answer.message
    assert set(answer.json["error"]) == {"message", "code", "request_id"}


@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("GET", "/ping", None, 200),
        ("GET", "/health", None, 200),
        ("GET", "/ready", None, 200),
        ("GET", "/version", None, 401),
        ("GET", "/metrics", None, 401),
        ("GET", "/openapi.json", None, 401),
        ("GET", "/nothing", None, 401),
        ("POST", "/model", None, 401),
        ("POST", "/invocations", None, 401),
        ("GET", "/version", TOKEN, 200),
        ("GET", "/openapi.json", TOKEN, 200),
        ("GET", "/nothing", TOKEN, 404),
        ("GET", "/model", TOKEN, 405),
        ("DELETE", "/metrics", TOKEN, 405),
    ],
)
def test_paths_and_what_they_need(adder: Replica, method: str, path: str, token: str | None, status: int) -> None:
    answer = adder.request(method, path, token=token)
    assert answer.status == status
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    if status >= 400:
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json["error"]["request_id"]
    if status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (basic(TOKEN), 200),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (basic("", TOKEN), 401),
        (basic(TOKEN, ""), 401),
        (basic("B" * 64), 401),
        ("Bearer ", 401),
        ("Basic !!!", 401),
        ("Digest x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
    ],
)
def test_only_a_valid_token_opens(adder: Replica, header: str, status: int) -> None:
    assert adder.post({"data": {"a": 1}}, headers={"Authorization": header}).status == status


def test_the_preflight_needs_no_token(adder: Replica) -> None:
    answer = adder.request("OPTIONS", "/model", token=None)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Methods"] == "POST"
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert "Access-Control-Allow-Credentials" not in answer.headers


def test_a_large_body_is_refused_with_the_limit(adder: Replica) -> None:
    answer = adder.post(b"x" * 20_000_000)
    assert answer.status == 413
    assert "10000" in answer.message
    assert adder.call(a=1) == {"sum": 3}


@pytest.mark.parametrize("chunks", [[b'{"data": {}}'], [b"x" * 100_000] * 20])
def test_a_chunked_body_is_refused(adder: Replica, chunks: list[bytes]) -> None:
    answer = adder.request("POST", "/model", iter(chunks), headers={"Content-Type": "application/json"})  # type: ignore[arg-type]
    assert answer.status == 411
    assert "Content-Length" in answer.message


def test_forty_kilobytes_of_headers_pass(adder: Replica) -> None:
    answer = adder.post({"data": {"a": 1}}, headers={"X-Much": "x" * 40_000})
    assert answer.result == {"sum": 3}


@pytest.mark.parametrize(("kind", "status"), [("text/csv", 415), ("application/json; charset=utf-8", 200), ("", 200)])
def test_the_media_type_is_json(adder: Replica, kind: str, status: int) -> None:
    assert adder.post({"data": {"a": 1}}, headers={"Content-Type": kind}).status == status


def test_invocations_says_that_it_is_mlflows(adder: Replica) -> None:
    assert "use /model" in adder.post({"inputs": [1]}, "/invocations").message


def test_a_deadline_of_the_gateway_that_is_over_is_not_worked_for(adder: Replica) -> None:
    late = {"X-Domino-Deadline-Ms": str(int(time.time() * 1000) - 5)}
    assert adder.post({"data": {"a": 1}}, headers=late).status == 504
    soon = {"X-Domino-Deadline-Ms": str(int(time.time() * 1000) + 5000)}
    assert adder.post({"data": {"a": 1}}, headers=soon).status == 200


@pytest.mark.parametrize(
    ("function", "body", "result"),
    [
        ("keywords", {"data": {"x": 1, "y": [2]}}, {"x": 1, "y": [2]}),
        ("one_dict", {"parameters": [{"b": 1, "a": 2}]}, ["a", "b"]),
        ("nothing", {"data": {}}, "nothing"),
        ("nothing", {"parameters": []}, "nothing"),
        ("instance", {"data": {"x": 4}}, 8),
        ("later", {"data": {"x": 4}}, 5),
    ],
)
def test_any_callable_will_do(function: str, body: object, result: object) -> None:
    with serving("takes_anything", function=function) as replica:
        assert replica.post(body).result == result


def test_an_exception_is_an_answer_without_its_text(tmp_path: object) -> None:
    with serving("takes_anything", function="raises") as replica:
        answer = replica.post({"data": {"text": "inner detail"}})
        assert answer.status == 500
        assert answer.json["error"]["code"] == "MODEL_ERROR"
        assert b"inner detail" not in answer.body
        assert "ValueError: inner detail" in replica.log
        assert answer.json["error"]["request_id"] in replica.log


def test_debug_shows_the_traceback() -> None:
    with serving("takes_anything", function="raises_a_type_error", debug=True) as replica:
        answer = replica.post({"data": {"x": 1}})
        assert answer.status == 500  # of the body, not of the arguments
        assert "TypeError" in answer.json["error"]["traceback"]


def test_sys_exit_in_a_prediction_ends_no_process() -> None:
    with serving("takes_anything", function="exits") as replica:
        workers = {p.pid for p in replica.family()}
        assert replica.post({"data": {}}).status == 500
        assert {p.pid for p in replica.family()} == workers


def test_the_script_is_sourced_once_and_knows_where_it_is() -> None:
    with serving("knows_where_it_is") as replica:
        found = replica.call()
        assert found["file"] == str(replica.source / "knows_where_it_is.py")
        assert found["first"] == found["cwd"] == str(replica.source)
        assert found["name"] == "knows_where_it_is"
        assert "python" in os.path.basename(found["executable"])
    with serving("counts_its_sourcings", workers=2) as replica:
        for _ in range(5):
            replica.call()
        assert (replica.directory / "sourcings").read_text() == "x\n" * 2


@pytest.mark.parametrize("what", ["object", "complex", "type"])
def test_a_result_without_a_json_form_is_named(what: str) -> None:
    with serving("result_cannot_be_encoded") as replica:
        answer = replica.post({"data": {"what": what}})
        assert answer.status == 500
        assert answer.json["error"]["code"] == "RESULT_NOT_ENCODABLE"
        assert f"of type {what}" in answer.message
        assert "result.outer[1]" in answer.message


FAULTS = {
    "raises_while_loading": "RuntimeError: no weights here",
    "has_a_syntax_error": "SyntaxError: invalid syntax (has_a_syntax_error.py, line 1)",
    "imports_what_is_not_there": "No module named 'a_package_that_is_not_there'",
    "exits_while_loading": "sys.exit(3)",
    "ends_the_process_while_loading": "ended the process during loading",
    "crashes_while_loading": "SIGSEGV",
    "is_killed_while_loading": "SIGKILL",
}


@pytest.mark.parametrize(("project", "reason"), FAULTS.items())
@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_cannot_load_fails_the_replica_with_its_reason(project: str, reason: str, workers: int) -> None:
    with Replica(project, workers=workers) as replica:
        started = time.monotonic()
        poll(lambda: replica.status.get("state") == "failed")
        assert time.monotonic() - started < 3
        assert reason in replica.status["reason"]
        assert replica.process is not None
        replica.process.wait(5)
        assert not replica.socket.exists()
        assert replica.status["state"] == "failed"


@pytest.mark.parametrize("project", ["hangs_while_loading", "hangs_in_c_while_loading"])
def test_a_model_that_hangs_while_loading_fails_after_the_limit_and_says_where(project: str) -> None:
    with Replica(project, start_timeout_s=1.5) as replica:
        poll(lambda: replica.status.get("state") == "failed")
        assert "took longer than 1.5 s" in replica.status["reason"]
        assert f"{project}.py" in replica.log
        assert replica.process is not None
        replica.process.wait(5)


def test_packages_that_do_not_go_together_fail_the_start_at_once(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "flask.py").write_text("raise ImportError(\"cannot import name 'url_quote' from 'werkzeug.urls'\")\n")
    (site / "others.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    for workers in (1, 2):
        with Replica("adds", python=str(environment / "bin" / "python"), workers=workers) as replica:
            poll(lambda: replica.status.get("state") == "failed", within=30)
            assert "cannot start: ImportError: cannot import name 'url_quote'" in replica.status["reason"]


def test_missing_files_and_functions_are_named() -> None:
    with Replica("takes_anything", function="nowhere") as replica:
        poll(lambda: replica.status.get("state") == "failed")
        assert "'nowhere'" in replica.status["reason"]
        assert "one_dict" in replica.status["reason"]
    with Replica("takes_anything", function="not_callable") as replica:
        poll(lambda: replica.status.get("state") == "failed")
        assert "is a int, which cannot be called" in replica.status["reason"]


def test_the_next_start_remembers_why_the_last_one_failed() -> None:
    with Replica("raises_while_loading") as replica:
        poll(lambda: replica.status.get("state") == "failed")
        replica.end()
        (replica.source / "raises_while_loading.py").write_text("def predict(): return 1\n")
        replica.start()
        assert "no weights here" in replica.ready().status["notes"][0]


def test_a_warm_up_that_raises_fails_the_start() -> None:
    files = {"warm.json": '{"data": {"x": 2}}'}
    with Replica("raises_at_first_prediction", files=files, warmup_file="warm.json") as replica:
        poll(lambda: replica.status.get("state") == "failed")
        assert "the first prediction fails" in replica.status["reason"]
        assert "warm.json" in replica.status["reason"]
        assert "Traceback" in replica.status["detail"]


def test_a_warm_up_runs_in_every_worker_before_it_is_ready() -> None:
    with serving("adds", workers=2, files={"warm.json": '{"data": {"a": 2}}'}, warmup_file="warm.json") as replica:
        assert replica.log.count("with warm.json") == 2


def test_variables_are_redacted_wherever_the_harness_writes() -> None:
    secret = "p%s$(id)@(exec://id)\"'key"
    with serving("prints_a_variable", variables={"API_KEY": secret}, debug=True) as replica:
        answer = replica.post({"data": {}})
        assert "<API_KEY>" in answer.json["error"]["traceback"]
        assert secret not in answer.json["error"]["traceback"]
        poll(lambda: "ValueError: <API_KEY>" in replica.log)
        assert secret not in replica.log
        assert "in two pieces: <API_KEY>" in replica.log
    with Replica("raises_a_variable_while_loading", variables={"API_KEY": secret}) as replica:
        poll(lambda: replica.status.get("state") == "failed")
        assert "cannot connect with <API_KEY>" in replica.status["reason"]
        assert secret not in replica.status["detail"]


def test_lines_carry_their_time() -> None:
    with serving("prints_a_variable", variables={"API_KEY": "abcdefghi"}) as replica:
        assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z loading with <API_KEY>$", replica.log, re.MULTILINE)


def test_every_worker_takes_changed_tokens_and_says_so() -> None:
    with serving("adds", workers=2) as replica:
        digest = replica.write_tokens(TOKEN, "B" * 64)
        started = time.monotonic()
        seen = [replica.directory / f"tokens.{n}" for n in (1, 2)]
        poll(lambda: all(file.read_text() == digest for file in seen))
        assert time.monotonic() - started < 0.5
        assert replica.post({"data": {"a": 1}}, token="B" * 64).status == 200
        replica.write_tokens("B" * 64)
        assert replica.post({"data": {"a": 1}}).status == 401  # at once: looked at by the request too
        (replica.tokens / "tokens.json").unlink()
        assert replica.post({"data": {"a": 1}}, token="B" * 64).status == 401


def test_ready_tells_which_tokens_all_workers_use_and_how_many_requests_are_in_flight() -> None:
    with serving("sleeps", workers=2) as replica, ThreadPoolExecutor(1) as pool:

        def told() -> tuple[str | None, str | None]:
            headers = replica.request("GET", "/ready", token=None).headers
            return headers.get("X-Domino-Tokens"), headers.get("X-Domino-In-Flight")

        used = hashlib.sha256((replica.tokens / "tokens.json").read_bytes()).hexdigest()
        poll(lambda: told() == (used, "0"))  # a call counts until a moment after its answer
        running = pool.submit(replica.post, {"data": {"seconds": 1}})
        poll(lambda: told()[1] == "1")
        digest = replica.write_tokens(TOKEN, "B" * 64)
        poll(lambda: told()[0] == digest)
        assert running.result().status == 200
        (replica.directory / "tokens.1").write_text("of a worker that has not looked yet")
        assert told()[0] is None
        assert "X-Domino-Tokens" not in replica.request("GET", "/ping", token=None).headers


def test_on_a_port_ready_waits_for_all_workers() -> None:
    with listening_on_a_port("loads_slowly_in_one_worker", workers=2) as (replica, port):

        def ready() -> int | None:
            with contextlib.suppress(OSError, HTTPException):
                return get(port, "/ready").status
            return None

        poll(lambda: ready() == 503)
        assert get(port, "/ping").status == 200
        (replica.source / "go").touch()
        poll(lambda: ready() == 200)
        assert "X-Domino-Tokens" not in get(port, "/ready").headers
        # A call counts until a moment after its answer.
        poll(lambda: get(port, "/ready").headers["X-Domino-In-Flight"] == "0")


@pytest.mark.parametrize(("workers", "threads"), [(2, 1), (1, 4), (2, 2)])
def test_an_overdue_request_ends_with_its_process_and_hurts_no_other(workers: int, threads: int) -> None:
    with serving("sleeps", workers=workers, threads=threads, request_timeout_s=1) as replica:

        def slow() -> int:
            return replica.post({"data": {"seconds": 30}}).status

        def good(n: int) -> int:
            return replica.post({"data": {"seconds": 0.05}}).status

        with ThreadPoolExecutor(12) as pool:
            overdue = pool.submit(slow)
            poll(lambda: replica.in_flight == 1)
            before = {p.pid for p in replica.family()}
            answers = list(pool.map(good, range(50)))
            assert answers == [200] * 50
            assert overdue.result() == 504
        poll(lambda: {p.pid for p in replica.family()} != before and replica.in_flight == 0)
        assert replica.post({"data": {}}).status == 200
        poll(lambda: restarts(replica) == 1)


def test_a_loop_in_c_ends_with_its_process() -> None:
    with serving("loops_in_c", workers=2, request_timeout_s=1) as replica:
        with ThreadPoolExecutor(8) as pool:
            looping = pool.submit(replica.post, {"data": {"loop": True}})
            poll(lambda: replica.in_flight == 1)
            looper = replica.family()
            assert [a.status for a in pool.map(lambda _: replica.post({"data": {}}), range(50))] == [200] * 50
            assert isinstance(looping.exception(), (OSError, HTTPException))
        poll(lambda: any(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in looper))
        poll(lambda: replica.in_flight == 0)


@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (2, 4)])
def test_sigterm_finishes_what_is_in_flight(workers: int, threads: int) -> None:
    with serving("sleeps", workers=workers, threads=threads) as replica, ThreadPoolExecutor(8) as pool:
        running = [pool.submit(replica.post, {"data": {"seconds": 1}}) for _ in range(workers * threads)]
        poll(lambda: replica.in_flight == workers * threads)
        replica.end(signal.SIGTERM)
        assert [r.result().status for r in running] == [200] * len(running)


def test_sigint_ends_at_once() -> None:
    with serving("sleeps", workers=2) as replica, ThreadPoolExecutor(1) as pool:
        cut = pool.submit(replica.post, {"data": {"seconds": 20}})
        poll(lambda: replica.in_flight == 1)
        started = time.monotonic()
        replica.end(signal.SIGINT)
        assert time.monotonic() - started < 2
        assert isinstance(cut.exception(), (OSError, HTTPException))


@pytest.mark.parametrize("threads", [1, 4])
def test_workers_are_recycled_by_count_one_at_a_time_and_no_request_fails(threads: int) -> None:
    with serving("sleeps", workers=2, threads=threads, worker_max_requests=20) as replica:
        pids = set()
        deadline = time.monotonic() + 60
        with ThreadPoolExecutor(4) as pool:
            while len(pids) < 8:
                assert time.monotonic() < deadline, pids
                pids |= {a.result for a in pool.map(lambda _: replica.post({"data": {}}), range(20))}


def test_a_worker_that_has_grown_is_recycled() -> None:
    with serving("grows", worker_max_memory=300 << 20) as replica:
        first = replica.call(mib=1)
        replica.call(mib=400)
        poll(lambda: replica.call() != first)


def test_a_killed_worker_comes_back_and_the_socket_stays() -> None:
    with serving("sleeps", workers=2) as replica:
        inode = replica.socket.stat().st_ino
        os.kill(replica.call(), signal.SIGKILL)
        poll(lambda: restarts(replica) == 1)
        assert replica.socket.stat().st_ino == inode
        assert replica.status["state"] == "ready"


def test_a_replacement_that_cannot_load_leaves_the_replica_as_it_was() -> None:
    with serving("fails_to_load_twice") as replica:
        with pytest.raises((OSError, HTTPException)):
            replica.post({"data": {}})
        poll(lambda: "loads only once" in replica.log)
        assert replica.status["state"] == "ready"


def test_a_restarted_replica_takes_the_old_ones_socket() -> None:
    with serving("adds") as replica:
        replica.end(signal.SIGKILL)
        assert replica.socket.exists()
        replica.start()
        poll(lambda: replica.status.get("pid") == replica.process.pid and replica.status["state"] == "ready")  # type: ignore[union-attr]
        assert replica.call(a=1) == {"sum": 3}


def test_nothing_outlives_a_killed_master() -> None:
    with serving("sleeps", workers=2) as replica:
        family = replica.family()
        assert len(family) == 4
        family[0].kill()
        replica.process.wait()  # type: ignore[union-attr]
        _gone, left = psutil.wait_procs(family[1:], timeout=3)
        assert not left


def test_metrics_add_up_over_processes_and_their_replacements() -> None:
    with serving("sleeps", workers=2) as replica:
        for _ in range(10):
            replica.call()
        pid = replica.call()
        poll(lambda: replica.metrics()['domino_requests_total{code="200",path="model"}'] == 11)
        os.kill(pid, signal.SIGKILL)
        for _ in range(10):
            replica.call()
        replica.post(b"{")
        found: dict[str, float] = {}

        def settled() -> bool:
            """Whether only the scrape itself is in flight: a request is over a moment after its answer is out."""
            found.update(replica.metrics())
            return found["domino_requests_in_flight"] == 1

        poll(settled)
        assert found['domino_requests_total{code="200",path="model"}'] == 21
        assert found['domino_requests_total{code="400",path="model"}'] == 1
        assert found['domino_requests_rejected_total{code="400"}'] == 1
        assert found['domino_request_duration_seconds_count{path="model"}'] == 22
        assert found['domino_model_load_seconds{worker="1"}'] > 0


def test_a_log_that_grows_is_moved_aside_and_goes_on() -> None:
    with serving("takes_anything", function="raises") as replica:
        with open(replica.log_path, "ab") as log:
            log.truncate(17 << 20)
        poll(lambda: replica.log_path.stat().st_size < 1 << 20)
        assert replica.log_path.with_name("replica.log.1").stat().st_size >= 17 << 20
        replica.post({"data": {"text": "after the move"}})
        assert "after the move" in replica.log
        assert "\0" not in replica.log


def test_threads_of_native_libraries_are_shared_out() -> None:
    cores = len(os.sched_getaffinity(0))
    with serving("holds_threads", workers=2, variables={"MKL_NUM_THREADS": "7"}) as replica:
        found = replica.call()
        assert found["OMP_NUM_THREADS"] == found["OPENBLAS_NUM_THREADS"] == str(max(1, cores // 2))
        assert found["MKL_NUM_THREADS"] == "7"


def test_a_folder_may_be_called_anything() -> None:
    with serving("adds", folder="it's %h %% $(touch x) @(exec:touch x) \"ü -") as replica:
        assert replica.call(a=1) == {"sum": 3}
        assert not (replica.source / "x").exists()


def test_variables_reach_the_project_as_they_are() -> None:
    value = "%h $(id) @(exec://id) 'a' \"b\"\nnext\tline ü"
    with serving("takes_anything", function="variable", variables={"ODD": value}) as replica:
        assert replica.call(name="ODD") == value


@contextlib.contextmanager
def listening_on_a_port(project: str, **settings: object) -> Iterator[tuple[Replica, int]]:
    """Give a replica as in a container, on a port, with its token in the environment; it may not be ready yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    replica = Replica(project, **settings)
    replica.config["tokens"] = None
    digest = hashlib.sha256(b"from the environment").hexdigest()
    replica.environment = {"DOMINO_SOCKET": "", "DOMINO_PORT": str(port), "DOMINO_TOKEN_SHA256": digest}
    with replica:
        yield replica, port


def get(port: int, path: str, method: str = "GET", body: bytes | None = None, token: str = "") -> Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())


def test_a_container_listens_on_its_port_and_takes_tokens_from_the_environment() -> None:
    with listening_on_a_port("adds") as (replica, port):
        replica.ready()
        for token, status in (("from the environment", 200), ("another", 401)):
            assert get(port, "/model", "POST", b'{"data": {"a": 1}}', token).status == status


def test_bodies_are_logged_where_asked_for() -> None:
    with serving("adds", log_http_request_response=True) as replica:
        replica.call(a=1)
        assert 'request {"data": {"a": 1}}' in replica.log
        assert '"result":{"sum":3}' in replica.log
