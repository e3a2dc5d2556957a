"""Seldon's protocol, as dispatchers speak it: one prediction a connection, to a replica's socket or port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlflow_domino.gateway.exchange import Broken, Exchange, Unreached
from mlflow_domino.queue.prediction import Progress

__all__ = ["Answered", "ask_progress", "ask_ready", "message", "predict", "stop"]

_PREDICTIONS = "/api/v1.0/predictions"
_ASK_S = 3.0
_LONGEST_TEXT = 300


@dataclass(frozen=True)
class Answered:
    """What a replica answered.

    Attributes
    ----------
    reason : str
        Empty where it succeeded; else ``MODEL_ERROR``, ``TIMEOUT``, ``LOST``, or another word. ``NOT_READY`` and ``BUSY``
        say that the model has not begun.
    result : str
        JSON, where it succeeded.
    info : str
        For the caller, where it failed.
    """

    status: int
    reason: str = ""
    result: str = ""
    info: str = ""


#: Gets what a replica answered, or why it did not.
Then = Callable[[Answered | Unreached | Broken], object]


def message(request: str, prediction_id: str, attempt: int, timeout_ms: int) -> bytes:
    """Return a prediction as Seldon's message; `request` is JSON, and stays as its caller wrote it.

    The time limit is a length, not a moment: the replica's clock is not this one.
    """
    meta = {"puid": prediction_id, "tags": {"attempt": attempt, "timeout_ms": timeout_ms}}
    return f'{{"jsonData": {request}, "meta": {json.dumps(meta)}}}'.encode("utf-8", "surrogatepass")


def predict(address: str, token: str, body: bytes, *, timeout_s: float, then: Then) -> None:
    """Have a replica predict; `then` gets its answer, or why there is none.

    `Unreached` means that it has not got the message; `Broken`, that it may have run it.
    """

    def done(status: int, raw: bytes, error: Unreached | Broken | None) -> None:
        if error is None:
            try:
                answered = _read(status, raw)
            except Broken as broken:
                error = broken
        then(error or answered)

    Exchange(address, _request("POST", _PREDICTIONS, token, body), timeout_s, done)


async def ask_ready(address: str) -> bool:
    """Whether a replica takes predictions."""
    return await _status(address, _request("GET", "/ready", "", b"")) == 200


async def ask_progress(address: str, token: str) -> dict[str, Progress]:
    """Return what the models of a replica say of its predictions, by their ids; replicas of early releases say nothing."""
    status, raw = await _answer(address, _request("GET", "/progress", token, b""))
    try:
        told = json.loads(raw) if status == 200 else {}
    except (ValueError, RecursionError):
        told = {}
    if not isinstance(told, dict):
        return {}
    return {name: _progress(one) for name, one in told.items() if isinstance(one, dict)}


def _progress(told: dict[str, Any]) -> Progress:
    fraction = told.get("fraction")
    known = isinstance(fraction, int | float) and 0 <= fraction <= 1
    text = str(told.get("text", ""))[:_LONGEST_TEXT].encode("utf-8", "replace").decode()
    return Progress(float(fraction or 0) if known else None, text)


async def stop(address: str, token: str, prediction_id: str) -> bool:
    """Whether a replica has stopped, or stops, a prediction that it runs."""
    request = _request("DELETE", f"{_PREDICTIONS}/{prediction_id}", token, b"")
    return await _status(address, request) in (200, 202)


async def _status(address: str, request: bytes) -> int:
    """Return the status of an answer, 0 where there is none."""
    return (await _answer(address, request))[0]


async def _answer(address: str, request: bytes) -> tuple[int, bytes]:
    """Return the status of an answer, 0 where there is none, and its body."""
    future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def done(status: int, raw: bytes, _error: Unreached | Broken | None) -> None:
        if not future.done():
            future.set_result((status, raw))

    Exchange(address, request, _ASK_S, done)
    return await future


def _request(method: str, path: str, token: str, body: bytes) -> bytes:
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    kind = "Content-Type: application/json\r\n" if body else ""
    head = f"{method} {path} HTTP/1.0\r\nHost: replica\r\n{kind}{authorization}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


def _read(status: int, raw: bytes) -> Answered:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    if status == 200 and isinstance(document, dict) and "jsonData" in document:
        return Answered(status, result=json_of(document["jsonData"]))
    told = document.get("status") if isinstance(document, dict) else None
    if not isinstance(told, dict) or "reason" not in told:
        raise Broken(f"the replica answered {status}, and not in Seldon's protocol")
    return Answered(status, reason=str(told["reason"]) or "MODEL_ERROR", info=str(told.get("info", "")))


def json_of(value: Any) -> str:
    """Return a value as JSON that every database and every client can hold: halves of characters stay escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text
