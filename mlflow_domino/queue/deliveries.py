"""Webhooks in the queue: which are to be called now, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from mlflow_domino.queue.prediction import Delivery, State
from mlflow_domino.queue.schema import deliveries, predictions

__all__ = ["claim", "delivered", "undelivered"]

#: For so long nobody else calls a webhook that was claimed; who did may have died.
_CLAIM_MS = 120_000
_FIRST_PAUSE_MS = 2000
_LONGEST_PAUSE_MS = 3_600_000
#: With these pauses, the last attempt comes some six hours after the first.
_ATTEMPTS = 16

_columns = deliveries.c


def claim(connection: sa.Connection, at_ms: int, limit: int, *, busy: Iterable[str] = ()) -> list[Delivery]:
    """Return webhooks to call now.

    Parameters
    ----------
    busy : iterable of str
        Endpoints of which enough are being called.
    """
    # A pause that is longer than any was made by another clock.
    due = (_columns.due_ms <= at_ms) | (_columns.due_ms > at_ms + 2 * _LONGEST_PAUSE_MS)
    query = sa.select(_columns.prediction_id).where(due, _columns.endpoint_id.not_in(list(busy)))
    query = query.order_by(_columns.due_ms).limit(limit)
    if connection.dialect.name != "sqlite":
        query = query.with_for_update(skip_locked=True)
    ids = list(connection.scalars(query))
    if not ids:
        return []
    mine = _columns.prediction_id.in_(ids)
    values = {"due_ms": at_ms + _CLAIM_MS, "attempts": _columns.attempts + 1, "changed_ms": at_ms}
    connection.execute(deliveries.update().where(mine).values(**values))
    told = [predictions.c[name] for name in ("state", "version", "finished_ms", "result", "errors")]
    names = [_columns[name] for name in ("id", "prediction_id", "endpoint_id", "url", "secret", "attempts")]
    joined = sa.select(*names, *told).join(predictions, predictions.c.id == _columns.prediction_id).where(mine)
    return [_delivery(row) for row in connection.execute(joined)]


def delivered(connection: sa.Connection, delivery: Delivery, at_ms: int) -> None:
    """Note that a webhook was told; its secret stays, since a prediction that is run again tells it again."""
    _change(connection, delivery, {"state": "succeeded", "due_ms": None, "changed_ms": at_ms, "reason": None})


def undelivered(connection: sa.Connection, delivery: Delivery, reason: str, at_ms: int, *, again: bool) -> None:
    """Note why a webhook could not be told, and when to try again.

    Parameters
    ----------
    again : bool
        Whether trying again may help.
    """
    values: dict[str, Any] = {"changed_ms": at_ms, "reason": reason[:500]}
    if again and delivery.attempts < _ATTEMPTS:
        values["due_ms"] = at_ms + min(_FIRST_PAUSE_MS << min(delivery.attempts - 1, 20), _LONGEST_PAUSE_MS)
    else:
        values |= {"state": "failed", "due_ms": None}
    _change(connection, delivery, values)


def _change(connection: sa.Connection, delivery: Delivery, values: dict[str, Any]) -> None:
    # A prediction that runs again has a new id for its webhook.
    same = (_columns.prediction_id == delivery.prediction_id) & (_columns.id == delivery.id)
    connection.execute(deliveries.update().where(same).values(**values))


def _delivery(row: sa.Row[Any]) -> Delivery:
    status = State(row.state).status
    data = {
        "asyncPredictionId": row.prediction_id,
        "endpoint_id": row.endpoint_id,
        "version": row.version,
        "status": status,
    }
    if row.state == State.SUCCEEDED:
        data["result"] = json.loads(row.result)
    else:
        data["errors"] = json.loads(row.errors or "[]")
    return Delivery(
        row.id, row.prediction_id, row.endpoint_id, row.url, row.secret, row.attempts, row.finished_ms, data
    )
