"""Seldon's protocol, as dispatchers speak it: one prediction a connection, to a replica's socket or port."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

__all__ = ["Answered", "Broken", "Unreached", "ask_ready", "message", "predict", "stop"]

_PREDICTIONS = "/api/v1.0/predictions"
_CONNECT_S = 5.0
_ASK_S = 3.0
_HEAD_LIMIT = 1 << 16
#: An answer that is larger than any result may be; what is beyond is not read.
_BODY_LIMIT = 8 << 20


class Unreached(Exception):
    """No byte of the prediction reached the replica."""


class Broken(Exception):
    """The replica had the prediction, and no answer came."""


@dataclass(frozen=True)
class Answered:
    """What a replica answered.

    Attributes
    ----------
    reason : str
        Empty where it succeeded; else ``MODEL_ERROR``, ``TIMEOUT``, ``NOT_READY``, ``BUSY`` or another word.
    result : str
        JSON, where it succeeded.
    info : str
        For the caller, where it failed.
    """

    status: int
    reason: str = ""
    result: str = ""
    info: str = ""


def message(request: str, prediction_id: str, attempt: int, deadline_ms: int) -> bytes:
    """Return a prediction as Seldon's message; `request` is JSON, and stays as its caller wrote it."""
    meta = {"puid": prediction_id, "tags": {"attempt": attempt, "deadline_ms": deadline_ms}}
    return f'{{"jsonData": {request}, "meta": {json.dumps(meta)}}}'.encode("utf-8", "surrogatepass")


async def predict(address: str, token: str, body: bytes, *, timeout_s: float) -> Answered:
    """Have a replica predict.

    Raises
    ------
    Unreached
        It has not got the message.
    Broken
        It may have run it, and there is no answer.
    """
    status, raw = await _exchange(address, "POST", _PREDICTIONS, token, body, timeout_s=timeout_s)
    return _read(status, raw)


async def ask_ready(address: str) -> bool:
    """Whether a replica takes predictions."""
    try:
        status, _ = await _exchange(address, "GET", "/ready", "", b"", timeout_s=_ASK_S)
    except (Unreached, Broken):
        return False
    return status == 200


async def stop(address: str, token: str, prediction_id: str) -> bool:
    """Whether a replica has stopped, or stops, a prediction that it runs."""
    try:
        status, _ = await _exchange(address, "DELETE", f"{_PREDICTIONS}/{prediction_id}", token, b"", timeout_s=_ASK_S)
    except (Unreached, Broken):
        return False
    return status in (200, 202)


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


async def _exchange(
    address: str, method: str, path: str, token: str, body: bytes, *, timeout_s: float
) -> tuple[int, bytes]:
    try:
        reader, writer = await asyncio.wait_for(_connect(address), _CONNECT_S)
    except (OSError, TimeoutError, asyncio.TimeoutError) as error:
        raise Unreached(f"the replica cannot be reached: {error or type(error).__name__}") from error
    try:
        # Of version 1.0, so that the answer comes in one piece, and the connection ends with it.
        head = f"{method} {path} HTTP/1.0\r\nHost: replica\r\nContent-Length: {len(body)}\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        if token:
            head += f"Authorization: Bearer {token}\r\n"
        writer.write(head.encode("ascii") + b"\r\n" + body)
        return await asyncio.wait_for(_answer(reader), timeout_s)
    except (TimeoutError, asyncio.TimeoutError) as error:
        raise Broken(f"no answer came within {timeout_s:g} s") from error
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise Broken(f"the replica ended before it had answered ({type(error).__name__})") from error
    finally:
        writer.transport.abort()  # both have said all


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("/"):
        return await asyncio.open_unix_connection(address, limit=_HEAD_LIMIT)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port), limit=_HEAD_LIMIT)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    words = head[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1."):
        raise ValueError(f"no HTTP: {head[0][:60]!r}")
    length = None
    for line in head[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            length = int(value)
        elif name.lower() == "transfer-encoding":
            raise ValueError("an answer in pieces was not asked for")
    if length is not None:
        return int(words[1]), await reader.readexactly(min(length, _BODY_LIMIT))
    return int(words[1]), await _to_the_end(reader)


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    chunks = bytearray()
    while chunk := await reader.read(1 << 16):
        chunks += chunk
        if len(chunks) > _BODY_LIMIT:
            break
    return bytes(chunks)
