"""Predictions of an endpoint that is deleted, removed by its cluster's gateway or without it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.data_planes import forgetting
from mlflow_domino.data_planes.forgetting import forget_by_gateway, forget_in
from mlflow_domino.errors import Unavailable
from mlflow_domino.queue.database import Database, sqlite_url
from mlflow_domino.queue.prediction import Submission, now_ms
from mlflow_domino.queue.queue import Queue

A, B = "a" * 24, "b" * 24


class Gateway(http.server.ThreadingHTTPServer):
    """Answers with the statuses that a test gives it, and notes who asked for what."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses: list[int] = []
        self.asked: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Gateway

    def do_DELETE(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        status = self.server.statuses.pop(0)
        body = b"" if status == 204 else json.dumps({"error": {"message": "the database is gone"}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(forgetting, "_PAUSE_S", 0.0)
    with Gateway() as gateway:
        thread = threading.Thread(target=gateway.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield gateway
        gateway.shutdown()
        thread.join()


def test_a_call_that_takes_longer_than_the_gateway_waits_is_repeated(gateway: Gateway) -> None:
    gateway.statuses = [504, 504, 204]
    forget_by_gateway(gateway.url, "secret", A)
    assert gateway.asked == [(f"/api/modelApis/async/v1/{A}", "Bearer secret")] * 3


def test_a_refusal_is_told_in_the_gateways_words_and_never_with_the_token(gateway: Gateway) -> None:
    gateway.statuses = [503]
    with pytest.raises(Unavailable, match="answers 503: the database is gone") as caught:
        forget_by_gateway(gateway.url, "secret", A)
    assert "secret" not in str(caught.value)


def test_a_gateway_that_does_not_answer_is_told(gateway: Gateway) -> None:
    with pytest.raises(Unavailable, match=r"answers nothing \(ConnectionError\)"):
        forget_by_gateway("http://127.0.0.1:1", "secret", A)


def test_it_does_not_go_on_for_ever(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "_WHOLE_S", -1.0)
    gateway.statuses = [504]
    with pytest.raises(Unavailable, match="The same command goes on where it stopped"):
        forget_by_gateway(gateway.url, "secret", A)


def test_without_a_gateway_the_database_forgets_the_endpoint_and_no_other(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "queue.db")
    database = Database(url)
    queue = Queue(database)
    kept, _ = queue.submit(Submission(B, "{}", deadline_ms=now_ms() + 60_000))
    gone, _ = queue.submit(Submission(A, "{}", deadline_ms=now_ms() + 60_000))
    forget_in(url, A)
    assert queue.get(A, gone) is None
    assert queue.get(B, kept) is not None
    database.close()
