"""What seldon-core calls: it passes each message on to the harness, which runs in the model's own environment."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from typing import Any, Iterator

from flask import has_request_context, request

from .config import Config
from .errors import InvalidInput, Lost, NotReady, Overdue, Overloaded, Refusal
from .log import log
from .relay import Relay
from .slots import Phase, Slots
from .tracker import new_request_id

__all__ = ["Component", "failure"]

#: A request that is over frees its slot a moment after its answer.
_SETTLE_S = 1.0
#: What the harness answers, in the words that the dispatcher acts upon; everything else is the model's own failure.
_REASONS = {401: "NOT_READY", 429: "BUSY", 503: "NOT_READY", 504: "TIMEOUT"}
_CODES = {"NOT_READY": 503, "LOST": 503, "BUSY": 429, "TIMEOUT": 504}


def failure(code: int, info: str, reason: str) -> dict[str, Any]:
    """Return Seldon's status document."""
    return {"status": {"status": "FAILURE", "code": code, "info": info, "reason": reason}}


class Component:
    """A Seldon component: any object with `predict_raw` and `health_status` is one.

    Parameters
    ----------
    config : Config
    slots : Slots
    relay : Relay
    capacity : int
        Messages that are passed on at once.
    """

    def __init__(self, config: Config, slots: Slots, relay: Relay, capacity: int) -> None:
        self._config = config
        self._slots = slots
        self._relay = relay
        self._capacity = capacity
        self._lock = threading.Lock()
        #: By request id, what their senders call them.
        self._mine: dict[str, str] = {}
        #: Of the thread that answers without Flask, which else knows what was sent.
        self._asked = threading.local()

    @contextlib.contextmanager
    def asked_with(self, authorization: str) -> Iterator[None]:
        """Answer a message outside of Flask, which came with this Authorization."""
        self._asked.authorization = authorization
        try:
            yield
        finally:
            self._asked.authorization = ""

    def init_metadata(self) -> dict[str, Any]:
        name = self._config.endpoint_name or self._config.source.name or "model"
        return {"name": name, "versions": [str(self._config.version_number)], "platform": "mlflow-domino"}

    def health_status(self) -> str:
        if self._slots.phase is not Phase.READY:
            raise NotReady("the replica takes no predictions now")
        return "healthy"

    def stop(self, puid: str) -> bool:
        """Stop the prediction that its sender calls so; false where none is running."""
        with self._lock:
            running = [request_id for request_id, name in self._mine.items() if name == puid]
        stopped = [self._slots.stop(request_id) for request_id in running]
        return any(stopped)

    def progress(self) -> dict[str, dict[str, Any]]:
        """Return how far predictions are, by what their senders call them; nothing of those whose model does not say."""
        with self._lock:
            newest = {name: request_id for request_id, name in self._mine.items()}  # of several runs the last one
        notes = {note.request_id: {"fraction": note.fraction, "text": note.text} for note in self._slots.notes()}
        return {name: notes[request_id] for name, request_id in newest.items() if request_id in notes}

    def predict_raw(self, message: Any) -> dict[str, Any]:
        """Return the answer to a Seldon message, as JSON gave it; whatever goes wrong is a status document."""
        began, request_id = time.monotonic(), new_request_id()
        meta = _mapping(message, "meta")
        try:
            answer, outcome = self._answer(message, meta, request_id), "succeeded"
        except Refusal as refusal:
            code, reason = refusal.status, _REASONS.get(refusal.status, "MODEL_ERROR")
            reason = refusal.code if isinstance(refusal, Lost) else reason
            log(f"prediction {_word(meta.get('puid'))}: {reason}: {refusal.message}", request_id=request_id)
            info = f"{refusal.message} (request_id {request_id})"
            answer, outcome = failure(_CODES.get(reason, code), info, reason), reason.lower()
        tags = {"request_id": request_id, **answer.pop("tags", {})}
        told = {"puid": str(meta["puid"])} if "puid" in meta else {}
        metrics = _metrics(outcome, (time.monotonic() - began) * 1000)
        return {**answer, "meta": {**told, "tags": tags, "metrics": metrics}}

    def _answer(self, message: Any, meta: dict[str, Any], request_id: str) -> dict[str, Any]:
        path, body, tabular = self._call(message)
        deadline = self._deadline(_mapping(meta, "tags"))
        headers = {"X-Request-Id": request_id, "X-Domino-Deadline-Ms": str(int(deadline * 1000))}
        authorization = request.headers.get("Authorization") if has_request_context() else self._asked.authorization
        if authorization:
            headers["Authorization"] = authorization
        self._enter(request_id, str(meta.get("puid", "")))
        try:
            status, raw = self._relay.post(
                path, json.dumps(body).encode("utf-8"), headers, within_s=max(0.0, deadline - time.time())
            )
        finally:
            self._leave(request_id)
        answer = _parsed(raw)
        if status != 200:
            raise _refused(status, answer)
        result = answer.get("result" if path == "/model" else "predictions")
        told = {key: answer[key] for key in ("model_time_in_ms",) if key in answer}
        if tabular and isinstance(result, list):
            return {"data": {"names": [], "ndarray": result}, "tags": told}
        return {"jsonData": result, "tags": told}

    def _call(self, message: Any) -> tuple[str, Any, bool]:
        """Return where in the harness a message goes, the body there, and whether it is one of Seldon's tables."""
        if isinstance(message, dict) and "jsonData" in message:
            body = message["jsonData"]
            if isinstance(body, dict) and isinstance(body.get("parameters"), dict) and "data" not in body:
                # The asynchronous API's word for what the synchronous one calls data: arguments by name.
                body = {**body, "data": body["parameters"]}
                del body["parameters"]
            return "/model", body, False
        if isinstance(message, dict) and isinstance(message.get("data"), dict):
            names, rows = message["data"].get("names") or [], _rows(message["data"])
            if self._config.source.kind == "Registry":
                split = {"dataframe_split": {"columns": names, "data": rows}} if names else {"inputs": rows}
                return "/invocations", split, True
            return "/model", _arguments(names, rows), True
        raise InvalidInput(
            'the message must hold jsonData, {"parameters": {name: value}}, or data with ndarray or tensor'
        )

    def _deadline(self, tags: dict[str, Any]) -> float:
        """Return the end of the time limit, in seconds since the epoch of this machine's clock, which may be no other's."""
        told = tags.get("timeout_ms")
        limit_s = self._config.async_timeout_s
        if isinstance(told, (int, float)):
            limit_s = min(limit_s, told / 1000)
        if limit_s <= 0:
            raise Overdue("the time limit was over before the model could begin")
        return time.time() + limit_s

    def _enter(self, request_id: str, puid: str) -> None:
        """Take a place, unless the replica is full: with ours, or with what an earlier microservice left running."""
        if self._slots.phase is not Phase.READY:
            raise NotReady("the replica takes no predictions now")
        settled = time.monotonic() - _SETTLE_S
        with self._lock:
            others = [
                slot
                for number in range(1, self._slots.workers + 1)
                for slot in self._slots.in_flight(number)
                if slot.started < settled and slot.request_id not in self._mine
            ]
            if len(self._mine) + len(others) >= self._capacity:
                raise Overloaded("the replica runs as many predictions as it can")
            self._mine[request_id] = puid

    def _leave(self, request_id: str) -> None:
        with self._lock:
            self._mine.pop(request_id, None)


def _mapping(value: Any, key: str) -> dict[str, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _word(value: Any) -> str:
    """Return what a caller sent in a form that cannot break a line of the log."""
    return re.sub(r"[^\w.:-]", "?", str(value))[:64]


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except ValueError:
        raise Lost("the replica's answer was cut off") from None
    return answer if isinstance(answer, dict) else {}


def _refused(status: int, answer: dict[str, Any]) -> Refusal:
    refusal = Refusal(str(_mapping(answer, "error").get("message", "the harness failed")))
    refusal.status = status
    return refusal


def _rows(data: dict[str, Any]) -> Any:
    if "ndarray" in data:
        return data["ndarray"]
    tensor = _mapping(data, "tensor")
    if not tensor:
        raise InvalidInput("data must hold ndarray or tensor")
    import numpy  # here: where seldon-core is, there it is

    try:
        return numpy.reshape(tensor["values"], tensor["shape"]).tolist()
    except (KeyError, TypeError, ValueError):
        raise InvalidInput("the tensor's values do not have its shape") from None


def _arguments(names: Any, rows: Any) -> dict[str, Any]:
    """Return what a project's function is called with: the one row of a table."""
    if not (
        isinstance(rows, list) and len(rows) == 1 and isinstance(rows[0], list) and len(names) in (0, len(rows[0]))
    ):
        raise InvalidInput("a function takes one row, with a value for each name")
    return {"data": dict(zip(names, rows[0]))} if names else {"parameters": rows[0]}


def _metrics(outcome: str, elapsed_ms: float) -> list[dict[str, Any]]:
    """Return what is counted in Seldon's own metrics; it takes them out of the answer."""
    tags = {"outcome": outcome}
    return [
        {"key": "domino_predictions_total", "type": "COUNTER", "value": 1, "tags": tags},
        {"key": "domino_prediction_duration_seconds", "type": "TIMER", "value": elapsed_ms, "tags": {}},
    ]
