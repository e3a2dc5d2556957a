"""The application and its parts, without uWSGI."""

from __future__ import annotations

import base64
import contextlib
import datetime
import decimal
import enum
import hashlib
import io
import json
import math
import socket
import uuid
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.app import Front, create_app
from harness.config import Config, Source, read_config
from harness.connection import NoConnection
from harness.encoding import encode
from harness.errors import ModelFailed, StartFailed, Unauthorized
from harness.log import Redaction, StampedStream
from harness.metrics import Metrics
from harness.predictor import FilePredictor, load_predictor
from harness.service import Service
from harness.slots import Phase, Slots, State
from harness.status import Status
from harness.tokens import Tokens
from harness.tracker import Tracker, new_request_id
from tests.conftest import eventually

PROJECTS = Path(__file__).parents[1] / "projects"


def config(project: str = "adds", function: str = "predict", **options: Any) -> Config:
    return Config(
        source=Source("File", str(PROJECTS), file=f"{project}.py", function=function), version_id="v", **options
    )


def client_of(project: str, function: str = "predict", **options: Any) -> Any:
    settings = config(project, function, **options)
    metrics = Metrics()
    service = Service(settings, FilePredictor(settings), Tokens(None, open_to_all=True))
    app = create_app(service, metrics)
    app.wsgi_app = Front(app.wsgi_app, Tracker(settings.request_timeout_s), metrics)  # type: ignore[method-assign]
    return app.test_client()


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def test_routes_of_the_owner_of_the_application_work_beside_ours() -> None:
    settings = config()
    app = create_app(Service(settings, FilePredictor(settings), Tokens(None, open_to_all=True)), Metrics())
    app.wsgi_app = Front(app.wsgi_app, Tracker(60), Metrics())  # type: ignore[method-assign]
    app.add_url_rule("/extra", view_func=lambda: "more")
    assert app.test_client().get("/extra").data == b"more"


def test_a_bug_of_ours_is_a_500_without_internals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = client_of("adds")
    monkeypatch.setattr(Service, "version", lambda _: 1 / 0)
    answer = client.get("/version")
    assert answer.status_code == 500
    assert "division" not in answer.text
    assert answer.json["error"]["code"] == "INTERNAL_ERROR"
    assert "ZeroDivisionError" in capsys.readouterr().err


class Numbered(NoConnection):
    """Callers' connections, which all get the same number, one after the other."""

    def __init__(self, number: int) -> None:
        self._number = number

    def descriptor(self) -> int | None:
        return self._number


@pytest.mark.parametrize("raises", [False, True])
def test_that_the_time_is_over_is_told_to_nobody_but_its_own_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    Slots.create(str(tmp_path / "slots"), workers=1, threads=1)
    tracker = Tracker(0.0, slots=Slots(str(tmp_path / "slots")))
    seen = []

    def app(environ: dict[str, Any], start: Any) -> list[bytes]:
        eventually(tracker.overdue)
        seen.extend(tracker.overdue())
        if raises:
            raise SystemExit
        start("200 OK", [])
        return [b""]

    caller, replica = socket.socketpair()
    with caller, replica:
        caller.setblocking(False)
        front = Front(app, tracker, Metrics(), Numbered(replica.fileno()))
        with pytest.raises(SystemExit) if raises else contextlib.nullcontext():
            front({"REQUEST_METHOD": "POST", "PATH_INFO": "/model", "wsgi.input": io.BytesIO()}, lambda *_: None)
        # Who looked just before still holds the ticket, and its number is the next caller's.
        monkeypatch.setattr(tracker, "overdue", lambda: seen)
        front.give_up_overdue()
        with pytest.raises(BlockingIOError):
            caller.recv(1)


def test_openapi_tells_a_functions_arguments() -> None:
    document = client_of("adds").get("/openapi.json").json
    named, by_position = document["paths"]["/model"]["post"]["requestBody"]["content"]["application/json"]["schema"][
        "oneOf"
    ]
    assert named["properties"]["data"] == {
        "type": "object", "properties": {"a": {}, "b": {"default": 2}}, "required": ["a"], "additionalProperties": False,
    }  # fmt: skip
    assert "parameters" in by_position["properties"]
    assert "/invocations" not in document["paths"]
    assert set(document["components"]["securitySchemes"]) == {"basic", "bearer"}


def test_head_is_no_get_of_the_model() -> None:
    assert client_of("adds").head("/model").status_code == 405


def test_every_request_has_an_id_of_its_own() -> None:
    assert len({new_request_id() for _ in range(1000)}) == 1000


# Encoding


class Colour(enum.Enum):
    RED = "red"


class Shade(str, enum.Enum):
    DARK = "dark"


@dataclass
class Point:
    x: int
    y: Any


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([1.0, np.nan, np.inf, -np.inf]), [1.0, None, None, None]),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array(["a", None], dtype=object), ["a", None]),
        (np.array(["2026-01-01", "NaT"], dtype="datetime64[D]"), ["2026-01-01", None]),
        (np.datetime64("2026-01-01T00:00:00.5"), "2026-01-01T00:00:00.500"),
        (np.timedelta64(1500, "ms"), 1.5),
        (np.array(5), 5),
        (pd.DataFrame({"a": [1, 2], "b": ["x", None]}), [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
        (pd.DataFrame({"t": pd.to_datetime(["2026-01-01", None])}), [{"t": "2026-01-01T00:00:00"}, {"t": None}]),
        (pd.Series([1.5, np.nan]), [1.5, None]),
        (pd.Series([1, None], dtype="Int64"), [1, None]),
        (pd.Index(["a"]), ["a"]),
        (pd.Categorical(["a", "b"]), ["a", "b"]),
        (pd.Timestamp("2026-01-01T01:02:03Z"), "2026-01-01T01:02:03+00:00"),
        (pd.NaT, None),
        (pd.NA, None),
        (pd.Timedelta("1s"), 1.0),
        (datetime.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.time(1, 2), "01:02:00"),
        (datetime.timedelta(minutes=1), 60.0),
        (decimal.Decimal("1.10"), 1.1),
        (decimal.Decimal("0.1234567890123456789"), "0.1234567890123456789"),
        (decimal.Decimal("NaN"), None),
        (b"\x00\xff", base64.b64encode(b"\x00\xff").decode()),
        (bytearray(b"a"), "YQ=="),
        ({1, 2}, [1, 2]),
        (range(3), [0, 1, 2]),
        (Colour.RED, "red"),
        ([Shade.DARK, np.int64(1)], ["dark", 1]),
        (Point(1, np.int64(2)), {"x": 1, "y": 2}),
        (Pair(1, b"a"), [1, "YQ=="]),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("/a"), "/a"),
        (
            {1: "a", None: 2, np.int64(5): 3, datetime.date(2026, 1, 1): 4},
            {"1": "a", "null": 2, "5": 3, "2026-01-01": 4},
        ),
        ([math.nan, {"x": math.inf}], [None, {"x": None}]),
        ("ü\ud800", "ü\ud800"),
        (2**80, 2**80),
    ],
)
def test_results_have_a_json_form(value: Any, expected: Any) -> None:
    assert json.loads(encode({"result": value}))["result"] == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "result, of type object"),
        ([1, {"a": (x for x in ())}], "result[1].a, of type generator"),
        (1j, "of type complex"),
        (np.array([1j]), "dtype complex128"),
        (int, "of type type"),
        (lambda: 1, "of type function"),
        ({(1, 2): 3}, "cannot be the key"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "columns of the same name"),
    ],
)
def test_what_has_none_is_named_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(ModelFailed) as caught:
        encode({"result": value})
    assert words in caught.value.message
    assert caught.value.code == "RESULT_NOT_ENCODABLE"


def test_a_result_that_holds_itself_is_named() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ModelFailed, match="holds itself"):
        encode(loop)


# Tokens


def write_tokens(folder: Path, *tokens: str) -> bytes:
    content = json.dumps(
        {"tokens": [{"id": t, "sha256": hashlib.sha256(t.encode()).hexdigest()} for t in tokens]}
    ).encode()
    (folder / "beside").write_bytes(content)
    (folder / "beside").replace(folder / "tokens.json")
    return content


def opens(tokens: Tokens, token: str) -> bool:
    try:
        tokens.check(f"Bearer {token}")
    except Unauthorized:
        return False
    return True


def test_tokens_follow_their_file_and_acknowledge_it(tmp_path: Path) -> None:
    content = write_tokens(tmp_path, "one", "two")
    seen = tmp_path / "seen"
    tokens = Tokens(str(tmp_path), digests=[hashlib.sha256(b"fixed").hexdigest().upper()], acknowledgement=str(seen))
    assert seen.read_text() == hashlib.sha256(content).hexdigest()
    assert opens(tokens, "one")
    assert opens(tokens, "two")
    assert opens(tokens, "fixed")
    write_tokens(tmp_path, "two")
    assert not opens(tokens, "one")
    (tmp_path / "tokens.json").unlink()
    assert not opens(tokens, "two")
    assert opens(tokens, "fixed")


def test_a_file_that_is_no_list_of_tokens_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tokens(tmp_path, "one")
    tokens = Tokens(str(tmp_path), acknowledgement=str(tmp_path / "seen"))
    before = (tmp_path / "seen").read_text()
    (tmp_path / "tokens.json").write_text("{")
    assert opens(tokens, "one")
    assert (tmp_path / "seen").read_text() == before
    assert "cannot be read" in capsys.readouterr().err


def test_without_any_token_nobody_enters(tmp_path: Path) -> None:
    assert not opens(Tokens(None), "")
    assert not opens(Tokens(str(tmp_path)), "x")


# Log


def test_values_are_redacted_in_every_form() -> None:
    value = 'line one "quoted"\nline\ttwo\'s'
    redact = Redaction({"KEY": value, "SHORT": "abc", "LONGER": "secret-and-more", "PART": "secret"})
    for form in (value, repr(value), json.dumps(value), 'line one "quoted"'):
        assert "quoted" not in redact(f"before {form} after")
    assert redact("abc") == "abc"
    assert redact("x secret-and-more secret") == "x <LONGER> <PART>"


def test_a_value_printed_in_pieces_is_redacted() -> None:
    sink = io.StringIO()
    stream = StampedStream(sink, Redaction({"KEY": "topsecret"}))
    for piece in ("tops", "ecr", "et\nnext"):
        print(piece, end="", file=stream, flush=True)
    assert sink.getvalue().endswith("Z <KEY>\n")
    stream.finish()
    assert sink.getvalue().endswith("Z next\n")


# Slots and status


def test_slots_are_shared_and_survive_a_process(tmp_path: Path) -> None:
    path = str(tmp_path / "slots")
    Slots.create(path, workers=2, threads=3)
    one, other = Slots(path), Slots(path)
    one.enter(2, 1234)
    one.take(2, 1, "A" * 16, 99.5)
    (flying,) = other.in_flight(2)
    assert (flying.request_id, flying.deadline, flying.index) == ("A" * 16, 99.5, 1)
    assert other.count_in_flight() == 1
    assert other.worker(2).state == State.LOADING
    one.set_state(2, State.READY)
    one.set_load_time(2, 1.5)
    one.phase = Phase.READY
    assert (other.worker(2).state, other.worker(2).load_time_s, other.phase) == (State.READY, 1.5, Phase.READY)
    one.enter(2, 1235)
    assert other.count_in_flight() == 0
    assert other.worker(2).starts == 2
    one.close()
    other.close()


def test_a_status_goes_forward_only_and_the_first_reason_stands(tmp_path: Path) -> None:
    status = Status(str(tmp_path), 7, Redaction({"KEY": "topsecret"}))
    status.begin()
    status.move("warming", note="with topsecret")
    status.move("loading")
    assert status.read()["state"] == "warming"
    assert status.read()["notes"] == ["with <KEY>"]
    assert status.fail("because of topsecret", "detail")
    assert not status.fail("another")
    assert status.read()["reason"] == "because of <KEY>"
    status.move("ready", load_time_s=1.0)
    assert status.read()["state"] == "failed"
    again = Status(str(tmp_path), 8, Redaction({}))
    again.begin()
    assert again.read()["notes"] == ["the start before this one failed: because of <KEY>"]
    again.move("ready", load_time_s=1.0)
    assert (again.read()["state"], again.read()["load_time_s"]) == ("ready", 1.0)
    assert not again.fail("too late")


# Configuration and loading


def test_a_configuration_of_another_release_is_read(tmp_path: Path) -> None:
    document = {
        "source": {"kind": "File", "path": "/p", "file": "a.py", "function": "f", "new": 1},
        "workers": 3,
        "later": True,
    }
    (tmp_path / "harness.json").write_text(json.dumps(document))
    environ = {
        "DOMINO_HARNESS_CONFIG": str(tmp_path / "harness.json"), "DOMINO_REPLICA_DIR": str(tmp_path / "r"),
        "DOMINO_VARIABLES": "A,B,", "A": "value", "DOMINO_TOKEN_SHA256": "AB, cd", "DOMINO_PORT": "8080",
    }  # fmt: skip
    read = read_config(environ)
    assert (read.workers, read.threads, read.source.function, read.port) == (3, 1, "f", 8080)
    assert (read.secrets, read.token_digests, read.open_to_all) == ({"A": "value"}, ("ab", "cd"), False)
    assert (tmp_path / "r").is_dir()


@pytest.mark.parametrize(
    ("project", "function", "words"),
    [
        ("not_there", "predict", "there is no such file"),
        ("adds", "prdict", "there is no 'prdict' in it; functions there: predict"),
        ("takes_anything", "not_callable", "is a int, which cannot be called"),
        ("raises_while_loading", "predict", "RuntimeError: no weights here"),
        ("exits_while_loading", "predict", "sys.exit(3)"),
        ("has_a_syntax_error", "predict", "SyntaxError"),
    ],
)
def test_a_project_that_cannot_load_says_why(project: str, function: str, words: str) -> None:
    with pytest.raises(StartFailed) as caught:
        load_predictor(config(project, function))
    assert words in caught.value.reason
