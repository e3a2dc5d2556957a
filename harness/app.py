"""The Flask application of a replica, and what stands in front of it."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Callable, Iterable

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from .connection import NoConnection
from .encoding import encode
from .errors import BY_STATUS, ModelFailed, NotAllowed, NotFound, Overdue, Refusal
from .log import log
from .metrics import Metrics
from .service import TICKET, Service, discard_body
from .tracker import Ticket, Tracker

__all__ = ["Front", "create_app"]

#: A word and no reason: nothing here needs a token.
OPEN_PATHS = ("/ping", "/health", "/ready")
#: What Domino's own endpoints answer to browsers.
CORS = (
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "POST"),
    ("Access-Control-Allow-Headers", "authorization,content-type"),
)


def create_app(service: Service, metrics: Metrics) -> Flask:
    """Return the application; routes, handlers and extensions can be added to it as to any other."""
    app = Flask("domino", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.redirect_defaults = False

    @app.before_request
    def guard() -> Response | None:
        if request.method == "OPTIONS":
            return Response(status=204)
        if request.path not in OPEN_PATHS:
            service.authenticate(request.environ)
        return None

    @app.after_request
    def allow_browsers(response: Response) -> Response:
        for name, value in CORS:
            response.headers.setdefault(name, value)
        return response

    _add_routes(app, service, metrics)
    _add_error_handlers(app, service)
    return app


def _add_routes(app: Flask, service: Service, metrics: Metrics) -> None:
    def route(path: str, method: str, view: Callable[[], Response]) -> None:
        app.add_url_rule(path, path.strip("/"), view, methods=[method], provide_automatic_options=False)

    for path in OPEN_PATHS:
        route(path, "GET", lambda: Response("ok\n", mimetype="text/plain"))
    route("/model", "POST", lambda: _json(service.model(request.environ)))
    route("/invocations", "POST", lambda: _json(service.invocations(request.environ)))
    route("/version", "GET", lambda: _json(encode(service.version())))
    route("/openapi.json", "GET", lambda: _json(encode(service.describe())))
    route("/metrics", "GET", lambda: Response(metrics.exposition(), content_type=metrics.content_type))


def _add_error_handlers(app: Flask, service: Service) -> None:
    @app.errorhandler(Refusal)
    def refused(refusal: Refusal) -> Response:
        request_id = request.environ[TICKET].request_id
        answer = _json(service.refuse(refusal, request_id), refusal.status)
        answer.headers.extend(refusal.headers)
        return answer

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        return refused(_translate(error))

    @app.errorhandler(Exception)
    def bug(error: Exception) -> Response:
        log("the harness itself failed", request_id=request.environ[TICKET].request_id, error=error)
        return refused(Refusal("the harness failed; the traceback is in the replica's log, under this request_id"))


def _translate(error: HTTPException) -> Refusal:
    status = error.code or 500
    if status == 404:
        return NotFound(f"there is nothing at {request.path}; a model is called by POST /model")
    if status == 405:
        allow = ", ".join(sorted(set(getattr(error, "valid_methods", None) or ()) - {"HEAD", "OPTIONS"}))
        return NotAllowed(f"{request.path} answers {allow} only", allow=allow)
    kind = BY_STATUS.get(status)
    if kind is not None:
        return kind(str(error.description))
    refusal = ModelFailed(str(error.description), code="INTERNAL_ERROR") if status == 500 else Refusal(error.name)
    refusal.status = status
    return refusal


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status=status, mimetype="application/json")


class Front:
    """The WSGI application that uWSGI calls: gives each request its ticket, and counts it when its answer is out.

    Parameters
    ----------
    app : WSGI application
    tracker : Tracker
    metrics : Metrics
    connection : NoConnection
        The way to the caller's connection.
    """

    def __init__(self, app: Any, tracker: Tracker, metrics: Metrics, connection: NoConnection | None = None) -> None:
        self._app = app
        self._tracker = tracker
        self._metrics = metrics
        self._connection = connection or NoConnection()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        ticket = self._tracker.begin(environ)
        environ[TICKET] = ticket
        ticket.descriptor = self._connection.descriptor()
        status: list[str] = []

        def start(line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            status.append(line)
            return start_response(line, headers, exc_info) if exc_info else start_response(line, headers)

        try:
            body = self._app(environ, start)
            discard_body(environ, self._connection)
        except BaseException:
            self._finish(ticket, environ, "500")
            raise
        code = status[-1][:3] if status else "500"
        if not ticket.claim():
            code = "504"  # the caller was told so meanwhile; what is written now goes nowhere
        return _Body(body, lambda: self._finish(ticket, environ, code))

    def give_up_overdue(self) -> None:
        """Tell those who came straight here that their time is over; behind the gateway it was the gateway's word."""
        for ticket in self._tracker.overdue():
            if ticket.descriptor is not None and ticket.claim():
                self._send(ticket.descriptor, self._overdue_answer(ticket))

    def _overdue_answer(self, ticket: Ticket) -> bytes:
        refusal = Overdue("the time limit was over; the work is stopped")
        body = encode({"error": {"code": refusal.code, "message": refusal.message, "request_id": ticket.request_id}})
        headers = (("Content-Type", "application/json"), ("Content-Length", str(len(body))), *CORS)
        lines = ["HTTP/1.1 504 Gateway Timeout", *(f"{name}: {value}" for name, value in headers), "", ""]
        return "\r\n".join(lines).encode("ascii") + body

    @staticmethod
    def _send(descriptor: int, answer: bytes) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.send(answer)
            connection.shutdown(socket.SHUT_RDWR)

    def _finish(self, ticket: Ticket, environ: dict[str, Any], code: str) -> None:
        self._tracker.end(ticket)
        self._metrics.observe(environ.get("PATH_INFO", ""), code, ticket.started)


class _Body:
    """An answer's bytes; uWSGI closes it when the last of them is sent."""

    def __init__(self, body: Any, finish: Callable[[], None]) -> None:
        self._body = body
        self._finish: Callable[[], None] | None = finish

    def __iter__(self) -> Any:
        return iter(self._body)

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            finish, self._finish = self._finish, None
            if finish is not None:
                finish()
