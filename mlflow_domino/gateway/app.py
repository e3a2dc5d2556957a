"""The gateway's own application: everything that is no model.

    GET /          what this is, and where things are
    GET /health    a word
    GET /metrics   metrics of all replicas and of Envoy, for whoever has the management token
    /api/modelApis/async/v1/…   predictions that are queued, and fetched later: see `predictions`

It runs in this package's own environment under uWSGI (see `serve`), and does not import MLflow: it must start within a
second, whatever the models are.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from mlflow_domino import __version__
from mlflow_domino.errors import GatewayFailed, InvalidInput, Unavailable
from mlflow_domino.gateway.admin import Admin
from mlflow_domino.gateway.callers import carries
from mlflow_domino.gateway.certificate import renew
from mlflow_domino.gateway.inventory import Inventory, InventoryFile, Replica, read_inventory
from mlflow_domino.gateway.metrics import CONTENT_TYPE, Exposition, by_endpoint
from mlflow_domino.gateway.pipe import fetch
from mlflow_domino.gateway.predictions import PATH, Predictions, Refusal

__all__ = ["create_app", "watch_certificate"]

_SCRAPE_S = 2.0
_SCRAPERS = 8
_CERTIFICATE_PERIOD_S = 2.0
_ENVOY_STATISTICS = (
    r"^vhost\.models\.route\.|^http\.gateway\.downstream_(rq|cx)_(active|total|[1-5]xx)$"
    r"|^cluster\..*\.(ejections_active|membership_total|upstream_rq_(active|pending_active|pending_overflow|timeout))$"
)


def create_app(inventory_file: Path) -> Flask:
    """Return the application.

    Parameters
    ----------
    inventory_file : Path
        ``gateway.json``, read at each request that needs it.
    """
    app = Flask(__name__, static_folder=None)
    read = InventoryFile(inventory_file)
    predictions = Predictions(read)
    app.register_blueprint(predictions.blueprint())
    app.extensions["predictions"] = predictions

    @app.get("/")
    def discover() -> Response:
        links = {
            "health": "/health",
            "metrics": "/metrics",
            "model": "/models/{id}/{route}/model",
            "invocations": "/models/{id}/{route}/invocations",
            "openapi": "/models/{id}/{route}/openapi.json",
            "predictions": f"{PATH}/{{id}}",
        }
        return jsonify(
            name="mlflow-domino", version=__version__, links=links, routes=["latest", "labels/prod", "{version}"]
        )

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="ok")

    @app.get("/metrics")
    def metrics() -> Response:
        inventory = read()
        if not carries(request.headers.get("Authorization", ""), Path(inventory.management_token)):
            return _unauthorized()
        exposition = _collect(inventory)
        predictions.measure(exposition)
        return Response(exposition.text(), content_type=CONTENT_TYPE)

    _answer_errors(app)
    return app


def _answer_errors(app: Flask) -> None:
    @app.errorhandler(Refusal)
    def declined(refusal: Refusal) -> Response:
        answer = _error(refusal.status, refusal.code, refusal.message)
        answer.headers.extend(refusal.headers)
        return answer

    @app.errorhandler(Unavailable)
    def queue_unavailable(error: Unavailable) -> Response:
        """Nothing was accepted, and trying again helps."""
        app.logger.error("%s", error)
        answer = _error(503, "QUEUE_UNAVAILABLE", "the queue of predictions cannot be used now; try again later")
        answer.headers["Retry-After"] = "2"
        return answer

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        if error.code == 404:
            return _error(404, "NOT_FOUND", f"there is nothing at {request.path}; GET / shows what there is")
        answer = _error(error.code or 500, error.name.upper().replace(" ", "_"), error.description or error.name)
        answer.headers.extend((k, v) for k, v in error.get_headers() if k.lower() == "allow")
        return answer

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        app.logger.error("the gateway's application failed", exc_info=error)
        return _error(500, "GATEWAY_ERROR", "the gateway failed; the reason is in its log")


def _error(status: int, code: str, message: str) -> Response:
    error = {"code": code, "message": message, "request_id": request.headers.get("X-Request-Id")}
    answer = jsonify(error=error)
    answer.status_code = status
    return answer


def _unauthorized() -> Response:
    answer = _error(401, "UNAUTHORIZED", "the gateway's management token is wanted, as Bearer or Basic")
    answer.headers["WWW-Authenticate"] = 'Basic realm="domino gateway"'
    return answer


def _collect(inventory: Inventory) -> Exposition:
    exposition = Exposition()
    with contextlib.suppress(GatewayFailed):
        exposition.add(by_endpoint(Admin(Path(inventory.admin)).exposition(_ENVOY_STATISTICS)))
    with ThreadPoolExecutor(_SCRAPERS) as pool:
        texts = list(pool.map(_scrape, inventory.replicas))
    for replica, text in zip(inventory.replicas, texts, strict=True):
        labels = {"endpoint": replica.endpoint_id, "version": str(replica.version), "replica": str(replica.number)}
        exposition.gauge("domino_replica_up", "Whether the replica answers.", text is not None, labels)
        if text is not None:
            exposition.add(text, labels)
    return exposition


def _scrape(replica: Replica) -> str | None:
    """Return a replica's own metrics, None where it does not answer (it may be starting or ending)."""
    try:
        headers = {"Authorization": f"Bearer {Path(replica.token).read_text('ascii').strip()}"}
        status, body = fetch(replica.address, "/metrics", headers=headers, timeout_s=_SCRAPE_S)
        return body.decode("utf-8") if status == 200 else None
    except (OSError, UnicodeDecodeError):
        return None


def watch_certificate(
    inventory_file: Path, *, report: Callable[[str], object], period_s: float = _CERTIFICATE_PERIOD_S
) -> threading.Thread:
    """Hand renewed certificates to Envoy, from a thread that ends with the process.

    Parameters
    ----------
    inventory_file : Path
        ``gateway.json``, which names the certificate.
    report : callable
        Gets each new reason why a certificate cannot be used.
    period_s : float
        Between two looks at the files.
    """

    def watch() -> None:
        told = ""
        while True:
            try:
                certificate = read_inventory(inventory_file).certificate
                if certificate is not None:
                    renew(Path(certificate.file), Path(certificate.chain), Path(certificate.key))
                told = ""
            except (InvalidInput, GatewayFailed, OSError) as error:  # such as a full disk
                if str(error) != told:
                    told = str(error)
                    report(told)
            time.sleep(period_s)

    thread = threading.Thread(target=watch, name="certificate", daemon=True)
    thread.start()
    return thread
