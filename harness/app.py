"""The Flask application of a replica, and what stands in front of it."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Callable, Iterable

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from .connection import NoConnection, copy_of, keep, send_and_close
from .encoding import encode
from .errors import BY_STATUS, ModelFailed, NotAllowed, NotFound, Overdue, Refusal
from .hot import CORS, JSON, HotPath, Reply
from .joining import Waiting
from .metrics import Metrics
from .readiness import Readiness
from .service import TICKET, Service, Work, bug, discard_body
from .tracker import Ticket, Tracker

__all__ = ["Front", "create_app", "is_untouched"]

_OURS = "domino"
#: A word and no reason: nothing here needs a token.
ALWAYS_OK = ("/ping", "/health")
OPEN_PATHS = (*ALWAYS_OK, "/ready")


def create_app(service: Service, metrics: Metrics, readiness: Readiness | None = None) -> Flask:
    """Return the application; routes, handlers and extensions can be added to it as to any other.

    Parameters
    ----------
    service : Service
    metrics : Metrics
    readiness : Readiness or None
        None outside a replica, where there is nobody to wait for.
    """
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
    _add_readiness(app, readiness)
    _add_error_handlers(app, service)
    app.extensions[_OURS] = _changeable(app)
    return app


def is_untouched(app: Flask) -> bool:
    """Whether nobody has added a hook, or taken a route or an error over, since the application was made."""
    return app.extensions[_OURS] == _changeable(app)


def _changeable(app: Flask) -> Any:
    hooks = (app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs, app.url_value_preprocessors)
    views = [app.view_functions.get(name) for name in ("model", "invocations")]
    handlers = {code: dict(kinds) for code, kinds in app.error_handler_spec[None].items()}
    functions = [{name: list(found) for name, found in hook.items() if found} for hook in hooks]
    return functions, views, handlers, list(app.teardown_appcontext_funcs), app.wsgi_app


def _add_routes(app: Flask, service: Service, metrics: Metrics) -> None:
    def route(path: str, method: str, view: Callable[[], Response]) -> None:
        app.add_url_rule(path, path.strip("/"), view, methods=[method], provide_automatic_options=False)

    for path in ALWAYS_OK:
        route(path, "GET", lambda: Response("ok\n", mimetype="text/plain"))
    route("/model", "POST", lambda: _json(service.model(request.environ)))
    route("/invocations", "POST", lambda: _json(service.invocations(request.environ)))
    route("/version", "GET", lambda: _json(encode(service.version())))
    route("/openapi.json", "GET", lambda: _json(encode(service.describe())))
    route("/metrics", "GET", lambda: Response(metrics.exposition(), content_type=metrics.content_type))


def _add_readiness(app: Flask, readiness: Readiness | None) -> None:
    @app.route("/ready", methods=["GET"], provide_automatic_options=False)
    def ready() -> Response:
        if readiness is None:
            return Response("ok\n", mimetype="text/plain")
        if not readiness.open:
            return Response("starting\n", status=503, mimetype="text/plain")
        return Response("ok\n", mimetype="text/plain", headers=readiness.headers())


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
    def broken(error: Exception) -> Response:
        return refused(bug(error, request.environ[TICKET].request_id))


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
    hot : HotPath or None
        What answers the calls of the model; without it the application does.
    """

    def __init__(
        self,
        app: Any,
        tracker: Tracker,
        metrics: Metrics,
        connection: NoConnection | None = None,
        hot: HotPath | None = None,
    ) -> None:
        self._app = app
        self._tracker = tracker
        self._metrics = metrics
        self._connection = connection or NoConnection()
        self.hot = hot

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        ticket = self._tracker.begin(environ)
        environ[TICKET] = ticket
        ticket.descriptor = self._connection.descriptor()
        status: list[str] = []

        def start(line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            status.append(line)
            return start_response(line, headers, exc_info) if exc_info else start_response(line, headers)

        try:
            if self.hot is not None and self.hot.takes(environ):
                reply = self.hot.answer(environ)
                if reply is None:
                    return ()  # kept by `keep`, answered by `send`
                body: Any = (reply.body,)
                start(reply.status, reply.headers)
            else:
                body = self._app(environ, start)
            discard_body(environ, self._connection)
        except BaseException:
            ticket.claim()  # or the word that the time is over could reach whoever has the connection's number next
            self._finish(ticket, environ.get("PATH_INFO", ""), "500")
            raise
        code = status[-1][:3] if status else "500"
        if not ticket.claim():
            code = "504"  # the caller was told so meanwhile; what is written now goes nowhere
        return _Body(body, lambda: self._finish(ticket, environ.get("PATH_INFO", ""), code))

    def keep(self, work: Work) -> int | None:
        """Take over the connection of the request that this thread serves; None where there is none to take."""
        ticket = work.ticket
        if ticket.descriptor is None:
            return None
        ticket.descriptor = keep(ticket.descriptor)
        return ticket.descriptor

    def send(self, waiting: Waiting, outcome: Any) -> None:
        """Answer a kept request with its result, or with what was raised."""
        assert self.hot is not None
        work = waiting.work
        reply = self.hot.reply(work, outcome)
        if not work.ticket.claim():
            os.close(waiting.descriptor)
            self._finish(work.ticket, work.path, "504")
            return

        def sent() -> None:
            self._finish(work.ticket, work.path, reply.status[:3])

        send_and_close(waiting.descriptor, reply.encoded(), sent)

    def give_up_overdue(self) -> None:
        """Tell those who came straight here that their time is over; behind the gateway it was the gateway's word."""
        for ticket in self._tracker.overdue():
            own = copy_of(ticket)
            if own is None:
                continue
            # The copy came first: who loses the right to answer may close what it was made of.
            if ticket.claim():
                self._tell_overdue(own, ticket)
            os.close(own)

    def _tell_overdue(self, descriptor: int, ticket: Ticket) -> None:
        refusal = Overdue("the time limit was over; the work is stopped")
        body = encode({"error": {"code": refusal.code, "message": refusal.message, "request_id": ticket.request_id}})
        answer = Reply("504 Gateway Timeout", [JSON, ("Content-Length", str(len(body))), *CORS], body).encoded()
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.send(answer)
            connection.shutdown(socket.SHUT_RDWR)

    def _finish(self, ticket: Ticket, path: str, code: str) -> None:
        self._tracker.end(ticket)
        self._metrics.observe(path, code, ticket.started)


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
