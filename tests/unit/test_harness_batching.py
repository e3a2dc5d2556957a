"""Joining without uWSGI, over real sockets; and the hot path beside Flask's routes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array

from harness.app import Front, create_app, is_untouched
from harness.config import Config, Source
from harness.connection import NoConnection, send_and_close
from harness.errors import InvalidInput
from harness.hot import HotPath
from harness.joined import Joined, reason_against
from harness.joining import Joiner
from harness.metrics import Metrics
from harness.predictor import Call, FilePredictor, Input, Predictor
from harness.problems import Problems
from harness.schema import compile_signature
from harness.service import Service
from harness.tables import join, parts_of
from harness.tokens import Tokens
from harness.tracker import Tracker
from harness.trial import agree, try_joining

PROJECTS = Path(__file__).parents[1] / "projects"
TOKEN = "T" * 64
X_AND_NAME = (ColSpec("double", "x"), ColSpec("string", "name", required=False))


def inputs_of(*specs: Any) -> Any:
    return compile_signature(ModelSignature(inputs=Schema(list(specs))).to_dict()).inputs


class Rows(Predictor):
    """A model of one function over a frame, with the check and the joining of registered models."""

    def __init__(self, answer: Callable[[Any], Any], specs: Any = X_AND_NAME, max_rows: int = 64) -> None:
        self.asked: list[int] = []
        self._answer = answer
        self.joined = Joined(inputs_of(*specs), self._predict, max_rows)

    def _predict(self, data: Any, params: Any) -> Any:
        self.asked.append(len(data))
        return self._answer(data)

    def prepare_call(self, call: Call) -> Input:
        alone = Input(lambda: self._predict(self.joined._built.of_call(call.data, call.parameters, Problems()), None))
        if self.joined.take_row(alone, call.data or {}, None, call.params):
            return alone
        problems = Problems()
        table = self.joined.table_of_call(call, problems)
        problems.raise_if_any()
        return self.joined.input(table, None, call.params)


class Line(NoConnection):
    """Callers one after the other, each on a socket; as many are seen waiting as were called."""

    def __init__(self) -> None:
        self.ours: deque[socket.socket] = deque()
        self.waiting = 0

    def descriptor(self) -> int | None:
        return self.ours[0].fileno()

    def others_wait(self) -> bool:
        return self.waiting > 0


class Desk:
    """The way of a request from its WSGI environment to the bytes on its caller's socket."""

    def __init__(self, predictor: Predictor, *, hot: bool = True, delay_s: float = 5.0, timeout_s: float = 60) -> None:
        settings = Config(source=Source("Registry", "/nowhere"), version_id="v")
        self.notes: list[str] = []
        self.line = Line()
        self.metrics = Metrics()
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        service = Service(settings, predictor, Tokens(None, digests=[digest]))
        app = create_app(service, self.metrics)
        self.app = app
        self.front = Front(app, Tracker(timeout_s), self.metrics, self.line)
        self.joiner = None
        if predictor.joined is not None:
            self.joiner = Joiner(
                predictor.joined, send=self.front.send, keep=self.front.keep, others_wait=self.line.others_wait,
                observer=self.metrics, delay_s=delay_s, note=self.notes.append, linger_s=0.3,
            )  # fmt: skip
            self.joiner.proven = True
        if hot:
            self.front.hot = HotPath(service, lambda: is_untouched(app), self.joiner)

    def ask(self, *bodies: Any, others: int | None = None) -> list[tuple[int, Any]]:
        """Send requests that all wait when the first is accepted; return each one's status and document."""
        return [
            (status, json.loads(body)) for status, _, body in self.exchange(*map(environ_of, bodies), others=others)
        ]

    def exchange(self, *environs: dict[str, Any], others: int | None = None) -> list[tuple[int, dict[str, str], bytes]]:
        pairs = [socket.socketpair() for _ in environs]
        self.line.waiting = len(environs) if others is None else others
        try:
            for environ, (_, ours) in zip(environs, pairs, strict=True):
                self.line.ours.append(ours)
                self.line.waiting -= others is None
                self._serve(environ, ours)
                self.line.ours.popleft()
                ours.close()  # as uWSGI does, whoever answers
            return [received(theirs) for theirs, _ in pairs]
        finally:
            for theirs, _ in pairs:
                theirs.close()

    def _serve(self, environ: dict[str, Any], ours: socket.socket) -> None:
        head: list[bytes] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "", ""]
            head.append("\r\n".join(lines).encode("latin-1"))

        body = self.front(environ, start_response)
        content = b"".join(body)
        if head:
            ours.sendall(head[0] + content)
        if hasattr(body, "close"):
            body.close()


def environ_of(body: Any, path: str = "/model", token: str = TOKEN, **more: Any) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {
        "REQUEST_METHOD": "POST", "PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": "", "SERVER_NAME": "localhost",
        "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost", "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(content), "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False,
        "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(content)),
        "HTTP_AUTHORIZATION": "Basic " + base64.b64encode(f"{token}:{token}".encode()).decode(), **more,
    }  # fmt: skip


def received(theirs: socket.socket) -> tuple[int, dict[str, str], bytes]:
    theirs.settimeout(10)
    data = b""
    while chunk := theirs.recv(1 << 16):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


def row(x: Any, **more: Any) -> dict[str, Any]:
    return {"data": {"x": x, "name": f"n{x}"}, **more}


def results(answers: list[tuple[int, Any]]) -> list[Any]:
    return [document["result"] if status == 200 else status for status, document in answers]


# Joining


def test_callers_who_wait_are_answered_together_each_his_own() -> None:
    model = Rows(lambda frame: frame["x"].to_numpy() * 10)
    assert results(Desk(model).ask(*map(row, map(float, range(7))))) == [[x * 10.0] for x in range(7)]
    assert model.asked == [7]


def test_a_caller_alone_is_answered_at_once_and_alone() -> None:
    model = Rows(lambda frame: frame["x"].to_numpy())
    desk = Desk(model)
    assert results(desk.ask(row(1.0))) == [[1.0]]
    assert results(desk.ask(row(2.0))) == [[2.0]]
    assert model.asked == [1, 1]


def test_no_prediction_has_more_rows_than_the_setting_allows() -> None:
    model = Rows(lambda frame: frame["x"].to_numpy(), max_rows=4)
    assert results(Desk(model).ask(*map(row, map(float, range(10))))) == [[float(x)] for x in range(10)]
    assert sum(model.asked) == 10
    assert max(model.asked) <= 4


def test_many_rows_join_too_and_too_many_stay_alone() -> None:
    model = Rows(lambda frame: frame["x"].to_numpy(), max_rows=5)
    many = {"data": {"x": [1.0, 2.0], "name": ["a", "b"]}}
    more = {"data": {"x": [0.5] * 9, "name": ["c"] * 9}}
    assert results(Desk(model).ask(many, more, row(3.0))) == [[1.0, 2.0], [0.5] * 9, [3.0]]
    assert sorted(model.asked) == [3, 9]


def test_whoever_was_seen_and_never_came_is_not_waited_for() -> None:
    model = Rows(lambda frame: frame["x"].to_numpy())
    desk = Desk(model, delay_s=60)
    started = time.monotonic()
    assert results(desk.ask(row(1.0), row(2.0), others=1)) == [[1.0], [2.0]]
    assert time.monotonic() - started < 5


def test_the_delay_is_an_upper_bound() -> None:
    model = Rows(lambda frame: frame["x"].to_numpy())
    desk = Desk(model, delay_s=0)
    assert results(desk.ask(*[row(1.0)] * 3, others=1)) == [[1.0]] * 3
    assert max(model.asked) == 1


def test_a_row_that_does_not_fit_never_joins() -> None:
    model = Rows(lambda frame: frame["x"].to_numpy())
    answers = Desk(model).ask(row(1.0), row("one"), row(2.0), {"data": {"x": 3.0, "nme": "a"}}, b"{", row(4))
    assert [status for status, _ in answers] == [200, 400, 200, 400, 400, 200]
    assert "row 0" in answers[1][1]["error"]["message"]  # its own row, not its place among others
    assert "'nme'" in answers[3][1]["error"]["message"]
    assert model.asked == [3]


def test_only_the_guilty_fail() -> None:
    def answer(frame: Any) -> Any:
        if (frame["x"] < 0).any():
            raise ValueError("a negative number")
        return frame["x"].to_numpy()

    desk = Desk(Rows(answer))
    rows = [float(x) if x % 7 else -1.0 for x in range(20)]
    assert results(desk.ask(*map(row, rows))) == [[x] if x >= 0 else 500 for x in rows]
    assert b"domino_batch_splits_total" in desk.metrics.exposition()


def test_an_end_of_the_process_asked_for_by_the_model_is_a_failure_of_the_guilty_only() -> None:
    def answer(frame: Any) -> Any:
        if (frame["x"] < 0).any():
            raise SystemExit(3)
        return frame["x"].to_numpy()

    assert results(Desk(Rows(answer)).ask(row(1.0), row(-1.0), row(2.0))) == [[1.0], 500, [2.0]]


def test_only_equal_params_join() -> None:
    seen: list[int] = []
    model = Rows(lambda frame: (seen.append(len(frame)), frame["x"].to_numpy())[1])
    answers = Desk(model).ask(
        row(1.0, params={"t": 1, "k": 2}), row(2.0, params={"k": 2, "t": 1}), row(3.0, params={"t": 1.0, "k": 2}),
        row(4.0, params={"t": True, "k": 2}), row(5.0),
    )  # fmt: skip
    assert results(answers) == [[1.0], [2.0], [3.0], [4.0], [5.0]]
    assert sorted(seen) == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("answer", "rows"),
    [
        (lambda frame: [float(frame["x"].sum())], 3),
        (lambda frame: float(frame["x"].sum()), 3),
        (lambda frame: {"mean": float(frame["x"].mean())}, 3),
        (lambda frame: {"each": frame["x"].to_numpy(), "n": len(frame)}, 3),
        (lambda frame: (1, 2, 3), 3),
    ],
)
def test_an_answer_that_is_not_one_for_each_row_stops_the_joining(answer: Any, rows: int) -> None:
    model = Rows(answer)
    desk = Desk(model)
    alone = [desk.ask(row(float(x)))[0][1]["result"] for x in range(rows)]
    assert results(desk.ask(*(row(float(x)) for x in range(rows)))) == alone
    assert "requests are not joined" in desk.notes[0]
    model.asked.clear()
    desk.ask(*(row(float(x)) for x in range(rows)))
    assert model.asked == [1] * rows


def test_an_answer_that_depends_on_the_neighbours_stops_the_joining() -> None:
    desk = Desk(Rows(lambda frame: frame["x"].to_numpy() - frame["x"].mean()))
    assert desk.joiner is not None
    desk.joiner.proven = False
    assert results(desk.ask(row(1.0), row(2.0))) == [[0.0], [0.0]]
    assert "otherwise among others" in desk.notes[0]


def test_a_request_whose_time_is_over_is_not_asked_for_again() -> None:
    def answer(frame: Any) -> Any:
        if len(frame) > 1:
            time.sleep(0.3)
            raise ValueError("not together")
        return frame["x"].to_numpy()

    model = Rows(answer)
    soon = environ_of(row(1.0), HTTP_X_DOMINO_DEADLINE_MS=str(int(time.time() * 1000) + 200))
    statuses = [status for status, _, _ in Desk(model).exchange(soon, environ_of(row(2.0)))]
    assert statuses == [504, 200]
    assert model.asked == [2, 1]


def test_a_caller_who_has_gone_is_not_worked_for() -> None:
    model = Rows(lambda frame: frame["x"].to_numpy())
    desk = Desk(model, delay_s=60)
    gone, ours = socket.socketpair()
    gone.close()
    desk.line.ours.append(ours)
    desk.line.waiting = 1
    desk._serve(environ_of(row(9.0)), ours)
    desk.line.ours.popleft()
    ours.close()
    assert results(desk.ask(row(1.0))) == [[1.0]]
    assert sum(model.asked) == 1


def test_what_is_kept_is_answered_before_the_process_ends() -> None:
    model = Rows(lambda frame: frame["x"].to_numpy())
    desk = Desk(model, delay_s=60)
    theirs, ours = socket.socketpair()
    with theirs, ours:
        desk.line.ours.append(ours)
        desk.line.waiting = 1
        desk._serve(environ_of(row(9.0)), ours)
        ours.close()
        assert desk.joiner is not None
        desk.joiner.finish()
        assert json.loads(received(theirs)[2])["result"] == [9.0]


def test_a_slow_reader_of_a_long_answer_keeps_nobody_waiting() -> None:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        done: list[bool] = []
        started = time.monotonic()
        send_and_close(ours.detach(), b"x" * 5_000_000, lambda: done.append(True))
        assert time.monotonic() - started < 1
        assert not done
        theirs.settimeout(10)
        size = 0
        while chunk := theirs.recv(1 << 20):
            size += len(chunk)
        assert size == 5_000_000


# What joins


@pytest.mark.parametrize(
    ("result", "counts", "parts"),
    [
        (np.arange(3), [1, 2], [[0], [1, 2]]),
        (np.arange(4.0).reshape(2, 2), [1, 1], [[[0.0, 1.0]], [[2.0, 3.0]]]),
        ([1, 2, 3], [2, 1], [[1, 2], [3]]),
        ({"a": np.arange(2), "b": ["x", "y"]}, [1, 1], [{"a": [0], "b": ["x"]}, {"a": [1], "b": ["y"]}]),
        (np.arange(3), [1, 1], None),
        (np.float64(3), [1], None),
        ({}, [1], None),
        ("abc", [1, 2], None),
        ((1, 2), [1, 1], None),
        (None, [1, 1], None),
    ],
)
def test_answers_are_taken_apart(result: Any, counts: list[int], parts: Any) -> None:
    assert parts_of(result, counts) == parts


def test_frames_and_series_are_taken_apart() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3]}, index=[7, 7, 7])
    first, second = parts_of(frame, [1, 2]) or ()
    assert first.to_dict("list") == {"a": [1]}
    assert second["a"].tolist() == [2, 3]
    assert [part.tolist() for part in parts_of(frame["a"], [2, 1]) or ()] == [[1, 2], [3]]


@pytest.mark.parametrize(
    "requests",
    [
        [{"a": 1.5, "b": 2, "c": "x", "d": True, "e": "2026-01-01"}, {"a": 2, "b": 3.0, "c": "", "d": False, "e": "2026-01-02T03:04:05"}],
        [{"a": [1.5, 2.5], "b": [1, 2], "c": ["x", "y"], "d": [True, False], "e": ["2026-01-01"] * 2},
         {"a": 0.1, "b": 3, "c": "z", "d": True, "e": "2026-01-01"}],
    ],
)  # fmt: skip
def test_joined_rows_are_for_the_model_what_each_would_be_alone(requests: list[dict[str, Any]]) -> None:
    kinds = {"a": "double", "b": "long", "c": "string", "d": "boolean", "e": "datetime"}
    inputs = inputs_of(*(ColSpec(kind, name) for name, kind in kinds.items()))
    tables, frames = [], []
    for data in requests:
        problems = Problems()
        tables.append(inputs.unbuilt().of_call(data, None, problems))
        frames.append(inputs.of_call(data, None, problems))
        assert not problems
    assert len({table.key for table in tables}) == 1
    assert tables[0].key is not None
    pd.testing.assert_frame_equal(inputs.build(join(tables)), pd.concat(frames, ignore_index=True))


@pytest.mark.parametrize(
    ("specs", "data"),
    [
        ([ColSpec("boolean", "b", required=False)], {"b": None}),
        ([ColSpec("string", "s", required=False)], {"s": [None, "x"]}),
        ([ColSpec("double", "x")], {"x": []}),
        ([ColSpec(Array("long"), "a", required=False)], {"a": None}),
    ],
)
def test_what_would_get_another_type_among_others_stays_alone(specs: Any, data: dict[str, Any]) -> None:
    problems = Problems()
    joined = Joined(inputs_of(*specs), lambda data, params: data, 8)
    table = joined.table_of_call(Call(data), problems)
    assert not problems
    assert joined.input(table, None, None).key is None


def test_absent_columns_join_only_with_absent_ones() -> None:
    joined = Joined(inputs_of(*X_AND_NAME), lambda data, params: data, 8)
    keys = []
    for data in ({"x": 1.0}, {"x": [2.0]}, {"x": 1.0, "name": "a"}):
        keys.append(joined.input(joined.table_of_call(Call(data), Problems()), None, None).key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([ColSpec("double", "x")], ""),
        ([ColSpec(AnyType(), "x")], "column 'x' may hold anything"),
        ([TensorSpec(np.dtype("float32"), (-1, 3))], ""),
        ([TensorSpec(np.dtype("float32"), (1, 3))], "is fixed"),
        ([TensorSpec(np.dtype("O"), (-1,))], "may hold anything"),
    ],
)
def test_signatures_that_cannot_be_joined_are_told(specs: Any, words: str) -> None:
    found = reason_against(inputs_of(*specs))
    assert words in found if words else not found


def test_tensors_join_on_their_first_axis() -> None:
    inputs = inputs_of(TensorSpec(np.dtype("float32"), (-1, -1), "a"), TensorSpec(np.dtype("int64"), (-1,), "b"))
    joined = Joined(inputs, lambda data, params: data["a"].sum(axis=1) + data["b"], 8)
    made = [
        joined.input(joined.table_of_call(Call({"a": [[1, 2]] * n, "b": [n] * n}), Problems()), None, None)
        for n in (1, 3)
    ]
    assert made[0].key == made[1].key
    answer = joined.answer(joined.merge(made), None)
    assert joined.parts(answer, made) == [[4.0], [6.0, 6.0, 6.0]]
    other = joined.input(joined.table_of_call(Call({"a": [[1, 2, 3]], "b": [1]}), Problems()), None, None)
    assert other.key != made[0].key
    uneven = joined.input(joined.table_of_call(Call({"a": [[1, 2]], "b": [1, 2]}), Problems()), None, None)
    assert uneven.key is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda frame: frame["x"].to_numpy() * 2, ""),
        (lambda frame: [1, 2], "one entry for each row"),
        (lambda frame: frame["x"].to_numpy() - frame["x"].mean(), "a row of its example otherwise alone"),
        (lambda frame: frame["x"].to_numpy() / len(frame), "beside a copy of itself"),
        (lambda frame: frame["x"].to_numpy()[: 2 if len(frame) < 3 else 1], "one entry for each row"),
        (lambda frame: 1 // (len(frame) < 3) and frame["x"].to_numpy(), "ZeroDivisionError"),
    ],
)
def test_the_example_shows_whether_rows_are_independent(answer: Any, words: str) -> None:
    tried, why = try_joining(Rows(answer), b'{"data": {"x": [1.0, 5.0], "name": ["a", "b"]}}')
    assert tried
    assert words in why if words else not why


def test_answers_agree_but_for_the_last_digits() -> None:
    assert agree({"a": np.array([1.0, 2.0])}, {"a": [1.0 + 1e-12, 2.0]})
    assert not agree([1, 2], [1, 3])
    assert not agree(["a"], ["b"])
    assert not agree([1.0], [1.1])
    assert not agree([1.0], [1.0, 2.0])


# The hot path beside Flask


def adds(**options: Any) -> Desk:
    source = Source("File", str(PROJECTS), file="adds.py", function="predict")
    return Desk(FilePredictor(Config(source=source)), **options)


LATE = str(int(time.time() * 1000) - 5000)
REQUESTS: list[dict[str, Any]] = [
    environ_of({"data": {"a": 1}}),
    environ_of({"parameters": [4, 5]}),
    environ_of({"data": {"a": "x"}}),
    environ_of({"data": {}}),
    environ_of({"data": {"a": 1}, "params": {"t": 1}}),
    environ_of(b"{"), environ_of(b"[1]"), environ_of(b""), environ_of(b"{}"), environ_of(b'{"data": {"a": NaN}}'),
    environ_of('{"data": {"a": 1}}'.encode("utf-16")), environ_of(b"\xff\xfe\xfd"), environ_of(b"\xef\xbb\xbf{}"),
    environ_of({"data": {"a": 1}}, token="no"), environ_of({"data": {"a": 1}}, HTTP_AUTHORIZATION=""),
    environ_of({"data": {"a": 1}}, HTTP_AUTHORIZATION="Bearer " + TOKEN),
    environ_of({"data": {"a": 1}}, CONTENT_TYPE="text/csv"), environ_of({"data": {"a": 1}}, CONTENT_TYPE=""),
    environ_of({"data": {"a": 1}}, CONTENT_TYPE="Application/JSON; charset=utf-8"),
    environ_of({"data": {"a": 1}}, CONTENT_LENGTH="x"), environ_of({"data": {"a": 1}}, CONTENT_LENGTH="1000"),
    environ_of({"data": {"a": 1}}, CONTENT_LENGTH=str(11 << 20)),
    environ_of({"data": {"a": 1}}, HTTP_TRANSFER_ENCODING="chunked"),
    environ_of({"data": {"a": 1}}, HTTP_X_DOMINO_DEADLINE_MS=LATE),
    environ_of({"data": {"a": 1}}, QUERY_STRING="x=1"),
    environ_of({"inputs": [1]}, "/invocations"), environ_of(b"", "/invocations"),
    environ_of({"data": {"a": 1}}, "/model/"), environ_of({"data": {"a": 1}}, "/nothing"),
    environ_of({"data": {"a": 1}}, REQUEST_METHOD="PUT"), environ_of(b"", REQUEST_METHOD="GET"),
]  # fmt: skip


@pytest.mark.parametrize("environ", REQUESTS, ids=range(len(REQUESTS)))
def test_the_hot_path_answers_as_flask_does(environ: dict[str, Any]) -> None:
    body = environ["wsgi.input"].getvalue()
    both = []
    for hot in (True, False):
        with desk_of(hot) as desk:
            both.append(desk.exchange({**environ, "wsgi.input": io.BytesIO(body)})[0])
    (status, headers, answer), (flask_status, flask_headers, flask_answer) = both
    assert status == flask_status
    assert without_chance(answer) == without_chance(flask_answer)
    assert without_chance(str(headers).encode()) == without_chance(str(flask_headers).encode())


@contextmanager
def desk_of(hot: bool) -> Iterator[Desk]:
    import sys

    path, modules = list(sys.path), dict(sys.modules)
    try:
        yield adds(hot=hot)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - set(modules):
            if name in ("adds", "_domino_script"):
                del sys.modules[name]


def without_chance(text: bytes) -> bytes:
    """Take out what differs from one time to the next: ids, times, and so the length."""
    text = re.sub(rb'("model_time_in_ms":)\d+|("timing":)[\d.e-]+', rb"\1\2", text)
    text = re.sub(rb"[A-Z0-9]{16}", b"ID", text)
    return re.sub(rb"('Content-Length': )'\d+'", rb"\1", text)


def test_hooks_of_the_owner_of_the_application_are_not_passed_by() -> None:
    with desk_of(True) as desk:
        seen: list[str] = []
        desk.app.before_request(lambda: seen.append("before"))
        assert desk.ask({"data": {"a": 1}})[0][0] == 200
        assert seen == ["before"]


def test_a_refusal_of_the_check_is_the_same_joined_and_alone() -> None:
    model = Rows(lambda frame: frame["x"].to_numpy())
    with pytest.raises(InvalidInput) as alone:
        problems = Problems()
        model.joined._built.of_call({"x": "one", "name": "a"}, None, problems)
        problems.raise_if_any()
    told = Desk(model).ask(row(1.0), {"data": {"x": "one", "name": "a"}})[1][1]["error"]
    assert told["message"] == alone.value.message
