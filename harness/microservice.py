"""What uWSGI serves as seldon-core's microservice: its REST application around our component, for the gateway only."""

from __future__ import annotations

import bisect
import os
import random
import signal
import threading
from typing import Any, Callable

from flask import Response, request
from werkzeug.exceptions import HTTPException

from .component import Component, failure
from .config import Config, read_config
from .connection import Connection, NoConnection
from .errors import LengthRequired, NotFound, Refusal, TooLarge
from .log import Redaction, install, log
from .messages import Messages
from .opening import ending_the_start, open_microservice
from .readiness import Readiness
from .relay import Relay
from .slots import Slots
from .status import Status
from .tokens import Tokens

__all__ = ["create_app", "start"]

#: A word and no reason, as in the harness.
_OPEN_PATHS = ("/ready", "/health/ping")


def start() -> Any:
    """Return the application, once the replica knows that it is there; where that fails end the replica's start."""
    config = read_config(os.environ)
    install(Redaction(config.secrets))
    os.environ.pop("PYTHONPATH", None)  # of the launcher, for a compiled uWSGI
    os.setpgid(0, 0)  # the harness's master signals its daemon's group; this process finishes what it is at
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    random.seed()
    slots = Slots(os.path.join(config.replica_dir, "slots"))
    status = Status(config.replica_dir, int(os.environ["DOMINO_MASTER"]), Redaction(config.secrets))
    with ending_the_start(slots, status):
        component = Component(config, slots, Relay(config), int(os.environ["DOMINO_SELDON_CAPACITY"]))
        tokens = Tokens(config.tokens, digests=config.token_digests, open_to_all=config.open_to_all)
        app = create_app(config, component, tokens, Readiness(slots, config.replica_dir), Connection())
        open_microservice(config, slots, status)
    return app


def create_app(
    config: Config, component: Component, tokens: Tokens, readiness: Readiness, connection: NoConnection
) -> Any:
    """Return seldon-core's own application, closed to everybody but the gateway, its errors ours."""
    from seldon_core import seldon_methods

    metrics = _metrics()
    app = _application(config, component, tokens, readiness, connection, metrics)
    return Messages(app, config, component, tokens, lambda message: seldon_methods.predict(component, message, metrics))


def _application(
    config: Config, component: Component, tokens: Tokens, readiness: Readiness, connection: NoConnection, metrics: Any
) -> Any:
    from seldon_core import wrapper

    app = wrapper.get_rest_microservice(component, metrics)
    app.json.sort_keys = False
    app.json.ensure_ascii = False
    app.json.compact = True
    shown = wrapper.get_metrics_microservice(metrics)
    app.add_url_rule(wrapper.METRICS_ENDPOINT, "metrics", shown.view_functions["Metrics"])

    @app.route("/ready", methods=["GET"])
    def ready() -> Response:
        state = ("ok\n", 200) if readiness.open else ("starting\n", 503)
        return Response(*state, mimetype="text/plain", headers=readiness.headers(own=0))

    @app.route("/api/v1.0/predictions/<puid>", methods=["DELETE"])
    def stop(puid: str) -> Any:
        if not component.stop(puid):
            raise NotFound("no prediction of this id is running here")
        return app.json.response(stopping=True), 202

    @app.route("/progress", methods=["GET"])
    def progress() -> Any:
        return app.json.response(component.progress())

    @app.before_request
    def guard() -> None:
        if request.method == "OPTIONS" or request.path in _OPEN_PATHS:
            return
        tokens.check(request.headers.get("Authorization", ""), by_gateway=True)
        if request.headers.get("Transfer-Encoding"):
            raise LengthRequired("send the body with a Content-Length: chunked bodies are not read here")
        if (request.content_length or 0) > config.max_body:
            raise TooLarge(f"the body has {request.content_length} bytes, the limit is {config.max_body}")

    _add_error_handlers(app, connection)
    return app


def _add_error_handlers(app: Any, connection: NoConnection) -> None:
    """Replace seldon-core's, which answer with the text of any exception."""
    from seldon_core.flask_utils import SeldonMicroserviceException

    from .service import discard_body

    def handles(kind: type) -> Callable[[Any], Any]:
        return app.errorhandler(kind)  # type: ignore[no-any-return]

    def told(code: int, info: str, reason: str) -> Response:
        discard_body(request.environ, connection)
        answer = app.json.response(failure(code, info, reason))
        answer.status_code = code
        return answer

    @handles(Refusal)
    def refused(refusal: Refusal) -> Response:
        answer = told(refusal.status, refusal.message, refusal.code)
        answer.headers.extend(refusal.headers)
        return answer

    @handles(SeldonMicroserviceException)
    def misunderstood(error: Any) -> Response:
        return told(error.status_code, str(error.message), "INVALID_INPUT")

    @handles(HTTPException)
    def http_error(error: HTTPException) -> Response:
        return told(error.code or 500, error.name, error.name.upper().replace(" ", "_"))

    @handles(Exception)
    def broken(error: Exception) -> Response:
        log("the microservice failed", error=error)
        return told(500, "the microservice failed; the traceback is in the replica's log", "INTERNAL_ERROR")


def _metrics() -> Any:
    """Return seldon-core's metrics, kept in this one process: its own class asks another process for each number."""
    from seldon_core.metrics import BINS, SeldonMetrics

    bounds = [float(bound) for bound in BINS[1:-1]]

    class Metrics(SeldonMetrics):  # type: ignore[misc]
        def __init__(self) -> None:
            self._lock = threading.RLock()
            self.data: dict[int, Any] = {}
            self.worker_id_func = lambda: 1
            self._extra_default_labels: dict[str, str] = {}

        def __del__(self) -> None:
            pass

        def update(self, custom_metrics: Any, method: str) -> None:
            with self._lock:
                super().update(custom_metrics, method)

        @staticmethod
        def _update_hist(seconds: float, counts: Any, total: float) -> Any:
            # Its own asks numpy, which takes longer than all the rest of the counting.
            counts = list(counts)
            counts[bisect.bisect_right(bounds, seconds)] += 1
            return counts, total + seconds

        def generate_metrics(self) -> Any:
            with self._lock:
                return super().generate_metrics()

    return Metrics()
