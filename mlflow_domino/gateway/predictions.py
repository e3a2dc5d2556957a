"""The asynchronous API: requests are queued, and predictions are fetched later.

    POST   /api/modelApis/async/v1/{endpoint}                    queue a prediction
    GET    /api/modelApis/async/v1/{endpoint}                    list predictions, newest first: ?status= &limit= &before= &depth=true
    GET    /api/modelApis/async/v1/{endpoint}/{prediction}       its status, and its answer; ?details=true tells more
    DELETE /api/modelApis/async/v1/{endpoint}/{prediction}       cancel it
    POST   /api/modelApis/async/v1/{endpoint}/{prediction}/retry run a failed one again
    DELETE /api/modelApis/async/v1/{endpoint}                    forget all (with the gateway's management token)

The first and the third are Domino's, and answer with nothing that Domino does not; all else is asked for by a header, a
key of the body, a parameter or a method that Domino's clients do not send.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flask import Blueprint, Response, request

from mlflow_domino.errors import Conflict, GatewayFailed, InvalidInput, NotFound, Unavailable, Unsupported
from mlflow_domino.gateway.callers import Callers, carries
from mlflow_domino.gateway.inventory import AsyncEndpoint, Inventory, QueueAccess
from mlflow_domino.gateway.metrics import Exposition
from mlflow_domino.gateway.submissions import Limits, parse, wait_of
from mlflow_domino.gateway.told import brief, counted, detailed
from mlflow_domino.gateway.wake import Waiter, ring
from mlflow_domino.models import valid_id
from mlflow_domino.queue.prediction import State, Submission, begun_ms, now_ms

if TYPE_CHECKING:
    from mlflow_domino.queue.queue import Queue

__all__ = ["PATH", "Predictions", "Refusal"]

#: State, result and errors of a prediction, the last two in JSON.
Poll = tuple[State, str | None, str | None]

PATH = "/api/modelApis/async/v1"
_MOST = 1000
#: Of the gateway's threads, those that may wait for an answer.
_WAITERS = 24
#: How often a caller who waits looks by himself: another gateway's dispatcher rings no bell here.
_LOOK_S, _LAST_LOOK_S = 0.1, 1.0
_CANCEL_S = 5.0
_DEPTH_S = 1.0
_STATES = {
    "queued": (State.QUEUED, State.DELAYED, State.RUNNING), "running": (State.RUNNING,), "succeeded": (State.SUCCEEDED,),
    "failed": (State.FAILED, State.CANCELLED), "cancelled": (State.CANCELLED,),
}  # fmt: skip


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Predictions:
    """The asynchronous API of one gateway.

    Parameters
    ----------
    inventory : callable
        Gives what `gateway.json` holds now.
    """

    def __init__(self, inventory: Callable[[], Inventory]) -> None:
        self._inventory = inventory
        self._callers = Callers()
        self._opening = threading.Lock()
        self._queues: dict[str, Queue] = {}
        self._known: tuple[QueueAccess, Queue] | None = None
        self._waiters = threading.BoundedSemaphore(_WAITERS)
        self._depths = _Depths()

    def blueprint(self) -> Blueprint:
        """Return the routes."""
        blueprint = Blueprint("predictions", __name__, url_prefix=PATH)
        rules: Iterable[tuple[str, str, Callable[..., Response]]] = (
            ("POST", "/<endpoint_id>", self.submit),
            ("GET", "/<endpoint_id>", self.list),
            ("DELETE", "/<endpoint_id>", self.forget),
            ("GET", "/<endpoint_id>/<prediction_id>", self.show),
            ("DELETE", "/<endpoint_id>/<prediction_id>", self.cancel),
            ("POST", "/<endpoint_id>/<prediction_id>/retry", self.retry),
        )
        for method, rule, view in rules:
            blueprint.add_url_rule(rule, f"{view.__name__}", view, methods=[method], provide_automatic_options=False)
        return blueprint

    # ---- routes --------------------------------------------------------------------------------------------------

    def submit(self, endpoint_id: str) -> Response:
        inventory, endpoint = self._endpoint(endpoint_id)
        if endpoint.version is None:
            reason = "the endpoint is stopped; its owner can start it" if endpoint.stopped else "no version runs yet"
            raise Refusal(503, "NOT_READY", reason, Retry_After="5")
        body = _body(inventory.queue.max_request if inventory.queue else 0)
        limits = Limits(int(endpoint.keep_s * 1000), bool(inventory.queue and inventory.queue.private_webhooks))
        try:
            submission = parse(endpoint_id, body, request.headers.get("Idempotency-Key"), limits, at_ms=now_ms())
        except InvalidInput as error:
            raise Refusal(400, "INVALID_INPUT", error.message) from None
        queue = self._queue(inventory)
        prediction_id, replayed = self._accepted(queue, endpoint, submission)
        if not replayed and inventory.queue:
            ring(inventory.queue.wake, endpoint_id)
        wait_s = wait_of(request.headers.get("Prefer", ""))
        if not wait_s:
            return _json({"asyncPredictionId": prediction_id})
        found = self._await(queue, endpoint_id, prediction_id, wait_s)
        return _answer(prediction_id, found or (State.QUEUED, None, None), wait_s)

    def show(self, endpoint_id: str, prediction_id: str) -> Response:
        inventory, endpoint = self._endpoint(endpoint_id, prediction_id)
        queue = self._queue(inventory)
        wait_s = wait_of(request.headers.get("Prefer", ""))
        found = self._await(queue, endpoint_id, prediction_id, wait_s)
        if found is None:
            raise _absent(prediction_id, endpoint)
        if not _is_true("details"):
            return _answer(prediction_id, found, wait_s)
        whole = queue.get(endpoint_id, prediction_id)
        if whole is None:
            raise _absent(prediction_id, endpoint)
        position = queue.position(whole) if whole.state is State.QUEUED else None
        webhook = queue.webhook(prediction_id) if whole.webhook else None
        return _answer(
            prediction_id, found, wait_s, detailed(whole, position=position, webhook=webhook, at_ms=now_ms())
        )

    def list(self, endpoint_id: str) -> Response:
        inventory, _ = self._endpoint(endpoint_id)
        status, limit = request.args.get("status", ""), request.args.get("limit", "100")
        if status and status.lower() not in _STATES:
            raise Refusal(400, "INVALID_INPUT", f"status must be one of {', '.join(_STATES)}")
        if not limit.isascii() or not limit.isdecimal() or not 1 <= int(limit) <= _MOST:
            raise Refusal(400, "INVALID_INPUT", f"limit must be a number from 1 to {_MOST}")
        states = _STATES[status.lower()] if status else tuple(State)
        before = request.args.get("before", "~")
        if before != "~" and begun_ms(before) is None:
            raise Refusal(400, "INVALID_INPUT", "before must be the id of a prediction, as in next")
        queue = self._queue(inventory)
        found = queue.find(endpoint_id, states=states, limit=int(limit), before=before)
        following = found[-1].id if len(found) == int(limit) else None
        more = {}
        if _is_true("depth"):
            more = counted(queue.depth(endpoint_id), queue.counts().get(endpoint_id, {}), now_ms())
        return _json({"predictions": [brief(one) for one in found], "next": following, **more})

    def cancel(self, endpoint_id: str, prediction_id: str) -> Response:
        inventory, endpoint = self._endpoint(endpoint_id, prediction_id)
        queue = self._queue(inventory)
        try:
            state = queue.cancel(endpoint_id, prediction_id, keep_ms=int(endpoint.keep_s * 1000))
        except NotFound:
            raise _absent(prediction_id, endpoint) from None
        if state is State.RUNNING:
            if inventory.queue:
                ring(inventory.queue.wake, f"cancel {prediction_id}")
            state = self._await_cancel(queue, endpoint_id, prediction_id)
        if state is State.RUNNING:
            raise Refusal(409, "RUNNING", "it runs and could not be stopped; its answer will be stored")
        if state in (State.QUEUED, State.DELAYED):
            return _json({"asyncPredictionId": prediction_id, "status": state.status, "cancelling": True}, status=202)
        if state is not State.CANCELLED:
            raise Refusal(409, "FINISHED", f"it has {state.status} already")
        found = queue.poll(endpoint_id, prediction_id)
        if found is None:
            raise _absent(prediction_id, endpoint)
        return _answer(prediction_id, found)

    def retry(self, endpoint_id: str, prediction_id: str) -> Response:
        inventory, endpoint = self._endpoint(endpoint_id, prediction_id)
        deadline_ms = now_ms() + int(endpoint.keep_s * 1000)
        try:
            self._queue(inventory).retry(endpoint_id, prediction_id, deadline_ms=deadline_ms)
        except NotFound:
            raise _absent(prediction_id, endpoint) from None
        except Conflict as error:
            raise Refusal(409, "NOT_FAILED", error.message) from None
        if inventory.queue:
            ring(inventory.queue.wake, endpoint_id)
        return _json({"asyncPredictionId": prediction_id, "status": "queued"})

    def forget(self, endpoint_id: str) -> Response:
        inventory = self._inventory()
        if not carries(request.headers.get("Authorization", ""), Path(inventory.management_token)):
            raise _unauthorized("the gateway's management token is wanted, as Bearer or Basic")
        if not valid_id(endpoint_id) or inventory.queue is None:
            raise Refusal(404, "NOT_FOUND", "there is no such asynchronous endpoint")
        self._queue(inventory).forget(endpoint_id)
        return Response(status=204)

    # ---- beside the routes ---------------------------------------------------------------------------------------

    def measure(self, exposition: Exposition) -> None:
        """Add the metrics of all asynchronous endpoints, as far as the queue can be used now."""
        inventory = self._inventory()
        if inventory.queue is None:
            return
        from mlflow_domino.gateway.measures import add_measures

        up = False
        with contextlib.suppress(Unavailable):
            endpoints = [endpoint.endpoint_id for endpoint in inventory.asynchronous]
            add_measures(exposition, self._queue(inventory), endpoints, now_ms())
            up = True
        exposition.gauge("domino_async_queue_up", "Whether the queue of predictions can be used.", up, {})

    def warm_up(self) -> None:
        """Open the queue, where there is one, before the first caller has to wait for that."""
        with contextlib.suppress(GatewayFailed, Unavailable, Unsupported, Refusal, OSError):
            self._queue(self._inventory())

    def close(self) -> None:
        """Close what was opened."""
        for queue in self._queues.values():
            queue.close()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _endpoint(self, endpoint_id: str, prediction_id: str | None = None) -> tuple[Inventory, AsyncEndpoint]:
        """Return an endpoint to a caller who has a token of it, and asks for what can be an id."""
        inventory = self._inventory()
        for endpoint in inventory.asynchronous:
            if endpoint.endpoint_id == endpoint_id:
                if not self._callers.admits(request.headers.get("Authorization", ""), endpoint.tokens):
                    raise _unauthorized("a token of the endpoint is wanted, as Bearer or Basic")
                if prediction_id is not None and begun_ms(prediction_id) is None:
                    raise _absent(prediction_id, endpoint)
                return inventory, endpoint
        raise Refusal(404, "NOT_FOUND", "there is no such asynchronous endpoint")

    def _queue(self, inventory: Inventory) -> Queue:
        """Return the queue, opened when it is first needed: importing SQLAlchemy takes a while."""
        access = inventory.queue
        if access is None:
            raise Refusal(503, "NOT_READY", "this gateway has no queue of predictions", Retry_After="5")
        known = self._known
        if known is None or known[0] is not access:
            try:
                url = Path(access.database).read_text("utf-8").strip()
            except (OSError, ValueError):  # it is being replaced, or was taken away
                raise Refusal(503, "NOT_READY", "the queue of predictions is not known", Retry_After="5") from None
            with self._opening:
                known = self._known = access, self._queues.get(url) or self._open(url)
        return known[1]

    def _open(self, url: str) -> Queue:
        from mlflow_domino.queue.database import Database
        from mlflow_domino.queue.queue import Queue

        self._queues[url] = Queue(Database(url))
        return self._queues[url]

    def _accepted(self, queue: Queue, endpoint: AsyncEndpoint, submission: Submission) -> tuple[str, bool]:
        """Return a prediction's id, and whether it was accepted before: one that was is no longer one too many."""
        try:
            if not self._depths.full(queue, endpoint):
                return queue.submit(submission)
            earlier = queue.earlier(submission)
        except Conflict as error:
            raise Refusal(409, "KEY_REUSED", error.message) from None
        if earlier is None:
            reason = f"{endpoint.max_queued} predictions wait already (async_max_queued)"
            raise Refusal(429, "TOO_MANY_REQUESTS", reason, Retry_After="10")
        return earlier, True

    def _await(self, queue: Queue, endpoint_id: str, prediction_id: str, wait_s: float) -> Poll | None:
        """Return a prediction; when it has ended or the time is over, where a thread is free to wait."""
        found = queue.poll(endpoint_id, prediction_id)
        if not wait_s or found is None or not self._waiters.acquire(blocking=False):
            return found
        with contextlib.ExitStack() as stack:
            stack.callback(self._waiters.release)
            waiter = stack.enter_context(Waiter(prediction_id))
            deadline, pause_s = time.monotonic() + wait_s, _LOOK_S
            while found is not None and found[0].status == "queued":
                found = queue.poll(endpoint_id, prediction_id)  # it may have ended before anybody listened
                left_s = deadline - time.monotonic()
                if left_s <= 0 or found is None or found[0].status != "queued":
                    break
                waiter.wait(min(left_s, pause_s))
                pause_s = min(pause_s * 1.5, _LAST_LOOK_S)
        return found

    def _await_cancel(self, queue: Queue, endpoint_id: str, prediction_id: str) -> State:
        """Return what became of a running prediction: `QUEUED` stands for one that is still being stopped."""
        if not self._waiters.acquire(blocking=False):  # the other threads are for those who do not wait
            return State.QUEUED
        try:
            return _state_after(queue, endpoint_id, prediction_id, _CANCEL_S)
        finally:
            self._waiters.release()


class _Depths:
    """How much of each endpoint waits, counted once a second: counting 100,000 rows takes a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, int]] = {}

    def full(self, queue: Queue, endpoint: AsyncEndpoint) -> bool:
        """Whether no more may be queued; counts the one that is about to be."""
        with self._lock:
            at, depth = self._known.get(endpoint.endpoint_id, (float("-inf"), 0))
            stale = time.monotonic() - at > _DEPTH_S
            self._known[endpoint.endpoint_id] = (time.monotonic() if stale else at), depth + 1
        if stale:
            depth = queue.depth(endpoint.endpoint_id).waiting
            with self._lock:
                self._known[endpoint.endpoint_id] = time.monotonic(), depth + 1
        return depth >= endpoint.max_queued


def _state_after(queue: Queue, endpoint_id: str, prediction_id: str, within_s: float) -> State:
    deadline = time.monotonic() + within_s
    while True:
        found = queue.get(endpoint_id, prediction_id)
        if found is None or found.state.status != "queued":
            return State.CANCELLED if found is None else found.state
        if not found.cancel:
            return State.RUNNING
        if time.monotonic() > deadline:
            return State.QUEUED
        time.sleep(_LOOK_S / 2)


def _body(limit: int) -> bytes:
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = request.get_data(cache=False)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _is_true(parameter: str) -> bool:
    return request.args.get(parameter, "").lower() in ("true", "1")


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413, "PAYLOAD_TOO_LARGE",
        f"the body is larger than {limit} bytes (async_max_request of the data plane); send a reference to the data instead",
    )  # fmt: skip


def _unauthorized(message: str) -> Refusal:
    return Refusal(401, "UNAUTHORIZED", message, WWW_Authenticate='Basic realm="domino gateway"')


def _absent(prediction_id: str, endpoint: AsyncEndpoint) -> Refusal:
    begun = begun_ms(prediction_id)
    if begun is not None and begun + endpoint.keep_s * 1000 <= now_ms():
        return Refusal(
            404, "EXPIRED", f"the prediction has expired: predictions are kept for {endpoint.keep_s:g} s (async_keep_s)"
        )
    return Refusal(404, "NOT_FOUND", "there is no such prediction of this endpoint")


def _answer(prediction_id: str, found: Poll, wait_s: float = 0.0, more: dict[str, object] | None = None) -> Response:
    """Return what Domino answers to a poll, and `more`; result and errors are passed on as they were stored."""
    state, result, errors = found
    parts = [f'{{"asyncPredictionId": "{prediction_id}", "status": "{state.status}"']
    if state.status == "failed":
        parts.append(f'"errors": {errors or "[]"}')
    if state is State.SUCCEEDED:
        parts.append(f'"result": {result}')
    if more:
        parts.append(json.dumps(more, ensure_ascii=False)[1:-1])
    response = Response(", ".join(parts) + "}", mimetype="application/json")
    if state.status == "queued":
        response.headers["Retry-After"] = "1"
    if wait_s:
        response.headers["Preference-Applied"] = f"wait={wait_s:g}"
    return response


def _json(document: object, *, status: int = 200) -> Response:
    return Response(json.dumps(document, ensure_ascii=False), status=status, mimetype="application/json")
