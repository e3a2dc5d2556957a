"""What the parts of an asynchronous replica decide, without its processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from harness.component import Component
from harness.config import Config, Source
from harness.errors import Lost, NotReady, Overdue, Overloaded, Unauthorized
from harness.launch import _check_microservice
from harness.log import Redaction
from harness.opening import ending_the_start, open_microservice, open_when_all_are_ready
from harness.progress import Progress, follow_progress
from harness.readiness import Readiness
from harness.relay import Relay
from harness.seldon import _environment
from harness.slots import Microservice, Note, Phase, Slots, State
from harness.status import Status
from harness.tokens import Tokens
from harness.tracker import Tracker

A, B = "A" * 16, "B" * 16


def config(folder: Path, **options: Any) -> Config:
    kind = options.pop("kind", "File")
    return Config(source=Source(kind, "/p"), replica_dir=str(folder), is_async=True, **options)


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    Slots.create(str(tmp_path / "slots"), workers=2, threads=2, microservice=True)
    return Slots(str(tmp_path / "slots"))


@pytest.fixture
def status(tmp_path: Path) -> Status:
    status = Status(str(tmp_path), os.getpid(), Redaction({}))
    status.begin()
    return status


class Relayed:
    """Stands for the way to the harness: what was sent, and what comes back."""

    def __init__(self, status: int = 200, answer: object = None) -> None:
        self.status, self.answer = status, answer if answer is not None else {"result": 1, "predictions": [1]}
        self.sent: list[tuple[str, Any, dict[str, str], float]] = []

    def post(self, path: str, body: bytes, headers: Any, within_s: float) -> tuple[int, bytes]:
        self.sent.append((path, json.loads(body), dict(headers), within_s))
        return self.status, json.dumps(self.answer).encode()


def predicted(slots: Slots, relay: Relayed, message: object, *, capacity: int = 4, **options: Any) -> dict[str, Any]:
    slots.phase = Phase.READY
    component = Component(config(Path("/"), **options), slots, relay, capacity)  # type: ignore[arg-type]
    with Flask("test").test_request_context(headers={"Authorization": "Bearer x"}):
        return component.predict_raw(message)


# ---- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "kind", "path", "body"),
    [
        ({"jsonData": {"parameters": {"a": 1}}}, "File", "/model", {"data": {"a": 1}}),
        ({"jsonData": {"parameters": {"a": 1}, "params": {}}}, "Registry", "/model", {"data": {"a": 1}, "params": {}}),
        ({"jsonData": {"parameters": [1]}}, "File", "/model", {"parameters": [1]}),
        ({"jsonData": {"parameters": {}, "data": {}}}, "File", "/model", {"parameters": {}, "data": {}}),
        ({"data": {"names": ["a"], "ndarray": [[1]]}}, "File", "/model", {"data": {"a": 1}}),
        ({"data": {"ndarray": [[1, 2]]}}, "File", "/model", {"parameters": [1, 2]}),
        (
            {"data": {"names": ["a"], "ndarray": [[1], [2]]}}, "Registry", "/invocations",
            {"dataframe_split": {"columns": ["a"], "data": [[1], [2]]}},
        ),
        ({"data": {"tensor": {"shape": [2, 1], "values": [1, 2]}}}, "Registry", "/invocations", {"inputs": [[1], [2]]}),
    ],
)  # fmt: skip
def test_each_form_of_a_message_becomes_a_call_of_the_harness(
    slots: Slots, message: object, kind: str, path: str, body: object
) -> None:
    relay = Relayed()
    answer = predicted(slots, relay, message, kind=kind)
    assert "status" not in answer
    assert relay.sent[0][:2] == (path, body)


def test_a_table_of_seldons_is_answered_with_one(slots: Slots) -> None:
    answer = predicted(slots, Relayed(), {"data": {"names": ["a"], "ndarray": [[1]]}}, kind="Registry")
    assert answer["data"] == {"names": [], "ndarray": [1]}


def test_the_callers_token_the_time_limit_and_an_id_go_with_it(slots: Slots) -> None:
    relay = Relayed()
    message = {"jsonData": {"data": {}}, "meta": {"puid": "p", "tags": {"timeout_ms": 50_000}}}
    answer = predicted(slots, relay, message, async_timeout_s=100)
    _, _, headers, within_s = relay.sent[0]
    assert headers["Authorization"] == "Bearer x"
    assert 40 < int(headers["X-Domino-Deadline-Ms"]) / 1000 - time.time() <= 50
    assert headers["X-Request-Id"] == answer["meta"]["tags"]["request_id"]
    assert 40 < within_s <= 50
    assert answer["meta"]["puid"] == "p"


def test_no_message_may_take_longer_than_the_setting(slots: Slots) -> None:
    relay = Relayed()
    late = {"jsonData": {"data": {}}, "meta": {"tags": {"timeout_ms": 5_000_000}}}
    predicted(slots, relay, late, async_timeout_s=100)
    assert relay.sent[0][3] <= 100


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (400, 400, "MODEL_ERROR"), (500, 500, "MODEL_ERROR"), (413, 413, "MODEL_ERROR"), (401, 503, "NOT_READY"),
        (503, 503, "NOT_READY"), (429, 429, "BUSY"), (504, 504, "TIMEOUT"),
    ],
)  # fmt: skip
def test_what_the_harness_refuses_is_said_in_the_dispatchers_words(
    slots: Slots, status: int, code: int, reason: str
) -> None:
    relay = Relayed(status, {"error": {"message": "why", "traceback": "secret"}})
    answer = predicted(slots, relay, {"jsonData": {"data": {}}})
    said = answer["status"]
    assert (said["status"], said["code"], said["reason"]) == ("FAILURE", code, reason)
    assert said["info"].startswith("why (request_id ")
    assert "secret" not in json.dumps(answer)


@pytest.mark.parametrize("answer", [[], "text", None])
def test_an_answer_that_is_none_of_the_harnesss_does_no_harm(slots: Slots, answer: object) -> None:
    relay = Relayed(200)
    relay.answer = answer
    assert predicted(slots, relay, {"jsonData": {"data": {}}})["jsonData"] is None


def test_a_full_replica_takes_nothing_more(slots: Slots) -> None:
    now = time.monotonic()
    for index in range(2):
        slots.take(1, index, A, now + 60)
    assert predicted(slots, Relayed(), {"jsonData": {"data": {}}}, capacity=2)["jsonData"] == 1  # just over, maybe
    settled = slots.in_flight(1)[0].started + 1.01
    while time.monotonic() < settled:
        time.sleep(0.01)
    answer = predicted(slots, Relayed(), {"jsonData": {"data": {}}}, capacity=2)
    assert answer["status"]["reason"] == "BUSY"


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.FAILED, Phase.ENDING])
def test_only_an_open_replica_takes_messages(slots: Slots, phase: Phase) -> None:
    component = Component(config(Path("/")), slots, Relayed(), 1)  # type: ignore[arg-type]
    slots.phase = phase
    with Flask("test").test_request_context():
        assert component.predict_raw({"jsonData": {"data": {}}})["status"]["reason"] == "NOT_READY"


# ---- the way to the harness ------------------------------------------------------------------------------------------

WHOLE = b"HTTP/1.1 200 OK\r\nX-Other: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


@contextlib.contextmanager
def answering(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answer one connection, whatever is asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                asked.append(connection.recv(1 << 16))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()


def relay_to(path: Path) -> Relay:
    return Relay(config(path.parent, socket=str(path)))


def test_a_request_goes_to_the_harness_whole_and_its_answer_comes_back(tmp_path: Path) -> None:
    with answering(tmp_path / "s", WHOLE) as asked:
        assert relay_to(tmp_path / "s").post("/model", b"{1}", {"X-Request-Id": A}, 5) == (200, b"{}")
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /model HTTP/1.0\r\n")
    assert b"\r\nContent-Length: 3" in head
    assert f"X-Request-Id: {A}".encode() in head
    assert body == b"{1}"


@pytest.mark.parametrize(
    "answer", [b"", WHOLE[:-1], WHOLE + b"}", WHOLE[:20], b"nonsense\r\n\r\n", WHOLE.replace(b"-L", b"")]
)
def test_an_answer_that_is_not_whole_is_none(tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path / "s", answer), pytest.raises(Lost):
        relay_to(tmp_path / "s").post("/model", b"{}", {}, 5)


def test_a_harness_that_is_not_there_or_does_not_answer_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotReady):
        relay_to(tmp_path / "nothing").post("/model", b"{}", {}, 5)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(NotReady):
            relay_to(tmp_path / "s").post("/model", b"{}", {}, 5)
        listening.listen(0)
        monkeypatch.setattr("harness.relay._GRACE_S", 0.0)
        with pytest.raises(Overdue):
            relay_to(tmp_path / "s").post("/model", b"{}", {}, 0.1)
        with pytest.raises(Overloaded):  # that one waits still
            relay_to(tmp_path / "s").post("/model", b"{}", {}, 5)


# ---- slots -----------------------------------------------------------------------------------------------------------


def test_a_request_is_stopped_by_its_id_and_not_the_one_that_took_its_place(slots: Slots) -> None:
    slots.take(2, 1, A, time.monotonic() + 60)
    assert not slots.stop(B)
    assert slots.stop(A)
    assert [slot.unwanted for slot in slots.in_flight(2)] == [True]
    slots.free(2, 1)
    assert not slots.stop(A)
    slots.take(2, 1, B, time.monotonic() + 60)
    assert [slot.unwanted for slot in slots.in_flight(2)] == [False]


def test_a_note_is_of_the_request_that_has_the_slot_now(slots: Slots) -> None:
    slots.take(2, 1, A, time.monotonic() + 60)
    assert slots.notes() == []
    slots.note(2, 1, Note(A, 0.5, "half"))
    assert slots.notes() == [Note(A, 0.5, "half")]
    slots.note(2, 1, Note(A, None, "é" * 200))
    (note,) = slots.notes()
    assert (note.fraction, note.text) == (None, "é" * len(note.text))
    assert 110 < len(note.text) < 128
    slots.take(1, 0, B, time.monotonic() + 60)
    slots.note(1, 0, Note(B, 0.0, ""))
    assert [note.request_id for note in slots.notes()] == [B, A]
    slots.take(2, 1, B, time.monotonic() + 60)
    slots.free(1, 0)
    assert slots.notes() == []


def test_a_replica_opens_when_workers_and_microservice_are_ready_in_any_order(
    slots: Slots, status: Status, tmp_path: Path
) -> None:
    own = config(tmp_path, socket=str(tmp_path / "s"))
    (tmp_path / "s.starting").touch()
    (tmp_path / "s.seldon.starting").touch()
    slots.set_state(1, State.READY)
    open_microservice(own, slots, status)
    assert slots.phase is Phase.STARTING
    assert not (tmp_path / "s.seldon").exists()
    slots.set_state(2, State.READY)
    open_when_all_are_ready(own, slots, status)
    assert slots.phase is Phase.READY
    assert (tmp_path / "s").exists()
    assert (tmp_path / "s.seldon").exists()
    assert status.read()["state"] == "ready"


def test_a_replica_whose_microservice_is_gone_is_not_ready_until_it_is_back(
    slots: Slots, status: Status, tmp_path: Path
) -> None:
    slots.phase = Phase.READY
    assert not Readiness(slots, str(tmp_path)).open
    open_microservice(config(tmp_path), slots, status)
    assert Readiness(slots, str(tmp_path)).open
    slots.microservice = Microservice.MISSING
    assert not Readiness(slots, str(tmp_path)).open


def test_a_microservice_that_fails_ends_a_start_and_nothing_else(slots: Slots, status: Status) -> None:
    with pytest.raises(ValueError, match="why"), ending_the_start(slots, status):
        raise ValueError("why")
    assert slots.phase is Phase.FAILED
    assert status.read()["reason"] == "seldon-core's microservice cannot start: ValueError: why"
    slots.phase = Phase.READY
    with pytest.raises(ValueError, match="again"), ending_the_start(slots, status):
        raise ValueError("again")
    assert slots.phase is Phase.READY


# ---- progress --------------------------------------------------------------------------------------------------------


@pytest.fixture
def handler(slots: Slots) -> Progress:
    return Progress(slots, 1, Tracker(60, slots=slots), Redaction({"PASSWORD": "geheim"}))


def say(handler: Progress, text: object = "on", *args: object, **extra: object) -> list[tuple[float | None, str]]:
    logger = logging.Logger("domino.progress", logging.INFO)
    logger.addHandler(handler)
    logger.info(text, *args, extra=extra)
    return [(note.fraction, note.text) for note in handler._slots.notes()]


def test_what_a_model_says_is_of_the_request_whose_thread_says_it(handler: Progress) -> None:
    first = handler._tracker.begin({"HTTP_X_REQUEST_ID": A})
    with ThreadPoolExecutor(1) as pool:
        pool.submit(handler._tracker.begin, {"HTTP_X_REQUEST_ID": B}).result()
        say(handler, "%d of %d", 1, 4, fraction=0.25)
        pool.submit(say, handler, "b").result()
        assert handler._slots.notes() == [Note(A, 0.25, "1 of 4"), Note(B, None, "b")]
        with ThreadPoolExecutor(1) as own:  # the model's own thread, whose request nobody knows
            own.submit(say, handler, "which?").result()
            assert [note.text for note in handler._slots.notes()] == ["1 of 4", "b"]
            handler._tracker.end(first)
            own.submit(say, handler, "the only one").result()
    assert handler._slots.notes() == [Note(B, None, "the only one")]


@pytest.mark.parametrize(
    ("fraction", "told"),
    [(0, 0.0), (True, 1.0), (7, 1.0), (-1, 0.0), ("0.5", 0.5), (float("nan"), None), ("half", None), (None, None), (10**400, None)],
)  # fmt: skip
def test_a_fraction_is_a_share_of_the_whole_or_nothing(handler: Progress, fraction: object, told: float | None) -> None:
    handler._tracker.begin({})
    assert say(handler, fraction=fraction) == [(told, "on")]


def test_progress_tells_no_variable_and_never_fails_the_model(
    handler: Progress, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(handler) == []
    handler._tracker.begin({})
    assert say(handler, "with geheim\nand more") == [(None, "with <PASSWORD> and more")]
    assert say(handler, "%d rows", "no number") == [(None, "with <PASSWORD> and more")]
    assert say(handler, fraction=NoNumber()) == [(None, "with <PASSWORD> and more")]
    assert capsys.readouterr().err.count("Logging error") == 2


class NoNumber:
    """As a tensor of several numbers is."""

    def __float__(self) -> float:
        raise RuntimeError("which of them?")


@pytest.mark.parametrize(("level", "shown"), [(logging.WARNING, False), (logging.INFO, True)])
def test_progress_is_logged_where_the_model_shows_such_records(
    slots: Slots, monkeypatch: pytest.MonkeyPatch, level: int, shown: bool
) -> None:
    monkeypatch.setattr(logging.root, "level", level)
    monkeypatch.setattr(logging.Logger, "manager", logging.Manager(logging.root))  # type: ignore[arg-type]
    logging.getLogger("domino.progress").disabled = True
    follow_progress(slots, 1, Tracker(60, slots=slots), Redaction({}))
    logger = logging.getLogger("domino.progress")
    assert (logger.isEnabledFor(logging.INFO), logger.propagate) == (True, shown)


# ---- who may ---------------------------------------------------------------------------------------------------------


def tokens_file(folder: Path, **tokens: str) -> Path:
    listed = [{"id": name, "sha256": hashlib.sha256(token.encode()).hexdigest()} for name, token in tokens.items()]
    (folder / "tokens.json").write_text(json.dumps({"tokens": listed}))
    return folder


def test_the_gateways_token_is_told_from_callers(tmp_path: Path) -> None:
    tokens = Tokens(str(tokens_file(tmp_path, gateway="g", caller="c")))
    tokens.check("Bearer c")
    tokens.check("Bearer g", by_gateway=True)
    assert [tokens.is_gateway(f"Bearer {token}") for token in ("g", "c", "x", "")] == [True, False, False, False]
    with pytest.raises(Unauthorized):
        tokens.check("Bearer c", by_gateway=True)


def test_tokens_of_the_environment_are_as_good_as_the_gateways() -> None:
    tokens = Tokens(None, digests=[hashlib.sha256(b"e").hexdigest()])
    assert tokens.is_gateway("Bearer e")
    assert not tokens.is_gateway("Bearer x")
    assert Tokens(None, open_to_all=True).is_gateway("")


@pytest.mark.parametrize("content", ['{"tokens": [1]}', '{"tokens": [{"id": "x"}]}', "[]", "{"])
def test_a_damaged_file_of_tokens_leaves_them_as_they_were(tmp_path: Path, content: str) -> None:
    tokens = Tokens(str(tokens_file(tmp_path, gateway="g")))
    (tmp_path / "tokens.json").write_text(content)
    assert tokens.is_gateway("Bearer g")


def test_a_file_of_tokens_that_cannot_be_opened_for_a_moment_counts_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a kubelet puts it there: it is its group's a moment after it is root's."""
    refused: list[str] = []

    def opened(path: str, mode: str) -> Any:
        if len(refused) < 3:
            refused.append(path)
            raise PermissionError(13, "Permission denied")
        return open(path, mode)

    tokens = Tokens(str(tokens_file(tmp_path, gateway="g")))
    tokens_file(tmp_path, gateway="h")
    with monkeypatch.context() as patched:
        patched.setattr("harness.tokens.open", opened, raising=False)
        assert [tokens.is_gateway("Bearer h") for _ in range(4)] == [False, False, False, True]
    assert not tokens.is_gateway("Bearer g")
    assert capsys.readouterr().err.count("cannot be read yet") == 1


@pytest.mark.parametrize(("authorization", "limit"), [("gateway", 100), ("caller", 60)])
def test_only_who_may_take_longer_does(authorization: str, limit: int) -> None:
    tracker = Tracker(60, longest_s=100, may_take_longer=lambda told: told == "gateway")
    told = str(int((time.time() + 1000) * 1000))
    environ = {"HTTP_X_DOMINO_DEADLINE_MS": told, "HTTP_AUTHORIZATION": authorization}
    left = tracker.begin(environ).deadline - time.monotonic()
    assert limit - 5 < left <= limit
    assert tracker.begin({"HTTP_AUTHORIZATION": authorization}).deadline - time.monotonic() <= 60


@pytest.mark.parametrize("soft", [resource.RLIM_INFINITY, 1073741816])
def test_no_replica_closes_a_thousand_million_descriptors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, soft: int
) -> None:
    told = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: told.append(limits))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    _check_microservice(config(tmp_path, seldon_python=sys.executable))
    assert told == [(1 << 20, soft)]


def test_the_microservice_gets_nothing_of_the_environment_but_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    given = {
        "PATH": "/bin", "LC_ALL": "C", "DOMINO_VARIABLES": "SELDON_KEY,API_KEY", "SELDON_KEY": "secret", "API_KEY": "x",
        "SELDON_DEPLOYMENT_ID": "d", "UWSGI_EMPEROR_FD": "3", "PYTHONPATH": "/x", "PROMETHEUS_MULTIPROC_DIR": "/m",
        "FLASK_DEBUG": "1", "OMP_NUM_THREADS": "8",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    clean = _environment(capacity=3)
    assert {"PATH", "LC_ALL", "DOMINO_VARIABLES", "SELDON_DEPLOYMENT_ID"} <= set(clean)
    assert not {
        "SELDON_KEY",
        "API_KEY",
        "UWSGI_EMPEROR_FD",
        "PYTHONPATH",
        "PROMETHEUS_MULTIPROC_DIR",
        "FLASK_DEBUG",
    } & set(clean)
    assert (clean["OMP_NUM_THREADS"], clean["DOMINO_SELDON_CAPACITY"]) == ("1", "3")
    monkeypatch.setattr(os, "environ", clean)
    assert _environment(capacity=3) == clean  # or it would start itself again and again
