"""Celery behind HTTP, as `mlflow-domino` is: a token, an id that is on disk when it is given, and polls for the answer."""

import hashlib
import hmac
import json
import os

from flask import Flask, Response, request
from tasks import app as celery
from tasks import predict

application = Flask(__name__)
_TOKEN = hashlib.sha256(os.environ["BENCHMARK_TOKEN"].encode()).digest()
_QUEUE, _UNACKNOWLEDGED = "celery", "unacked"


@application.before_request
def authorize():
    given = request.authorization.password if request.authorization else ""
    if not hmac.compare_digest(hashlib.sha256((given or "").encode()).digest(), _TOKEN):
        return Response(status=401)
    return None


@application.post("/predictions")
def submit():
    result = predict.apply_async((request.get_json()["parameters"]["x"],))
    wait = request.headers.get("Prefer", "").partition("wait=")[2]
    if not wait:
        return _json({"asyncPredictionId": result.id})
    return _json({"asyncPredictionId": result.id, "status": "succeeded", "result": result.get(timeout=float(wait))})


@application.get("/predictions/<prediction_id>")
def show(prediction_id):
    result = celery.AsyncResult(prediction_id)
    if not result.ready():
        return _json({"asyncPredictionId": prediction_id, "status": "queued"})
    return _json({"asyncPredictionId": prediction_id, "status": "succeeded", "result": result.result})


@application.get("/predictions")
def depth():
    with celery.connection_for_read() as connection:
        redis = connection.default_channel.client
        found = {"queued": redis.llen(_QUEUE), "delayed": 0, "running": redis.hlen(_UNACKNOWLEDGED), "oldest_age_s": 0}
    return _json({"depth": found})


def _json(document):
    return Response(json.dumps(document), mimetype="application/json")
