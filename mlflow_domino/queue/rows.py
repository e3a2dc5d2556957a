"""From rows to values, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from mlflow_domino.queue.prediction import Attempt, Prediction, Progress, State
from mlflow_domino.queue.schema import COUNTED
from mlflow_domino.queue.statements import ADD

__all__ = ["attempts_from", "attempts_to", "count", "insert", "prediction_of"]


def prediction_of(row: sa.Row[Any]) -> Prediction:
    """Return the value of a whole row of `predictions`."""
    values: dict[str, Any] = dict(row._mapping)
    values.pop("owner")
    values["state"] = State(values["state"])
    values["cancel"], values["webhook"] = bool(values["cancel"]), bool(values["webhook"])
    values["errors"] = tuple(json.loads(values["errors"] or "[]"))
    values["attempts"] = attempts_from(values["attempts"])
    values["progress"] = Progress(**json.loads(values["progress"])) if values["progress"] else None
    return Prediction(**values)


def attempts_from(text: str | None) -> tuple[Attempt, ...]:
    return tuple(Attempt(**one) for one in json.loads(text)) if text else ()


def attempts_to(attempts: Iterable[Attempt]) -> str:
    return json.dumps([dataclasses.asdict(one) for one in attempts], ensure_ascii=False)


def count(connection: sa.Connection, additions: Mapping[str, Mapping[str, int]]) -> None:
    """Add to endpoints' counters."""
    # In one order everywhere, so that two transactions never wait for each other.
    for endpoint_id, own in sorted(additions.items()):
        ADD(connection, {"endpoint_id": endpoint_id, **_NOTHING, **own})


_NOTHING = dict.fromkeys(COUNTED, 0)


def insert(connection: sa.Connection, table: sa.Table) -> Any:
    """Return an insertion that can say what to do on conflict."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
