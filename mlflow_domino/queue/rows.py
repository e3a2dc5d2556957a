"""From rows to values, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from mlflow_domino.queue.prediction import Attempt, Prediction, State
from mlflow_domino.queue.schema import predictions, tallies

__all__ = ["attempts_from", "attempts_to", "count", "insert", "lane", "prediction_of"]


def prediction_of(row: sa.Row[Any]) -> Prediction:
    """Return the value of a whole row of `predictions`."""
    values: dict[str, Any] = dict(row._mapping)
    values.pop("owner")
    values["state"] = State(values["state"])
    values["cancel"], values["webhook"] = bool(values["cancel"]), bool(values["webhook"])
    values["errors"] = tuple(json.loads(values["errors"] or "[]"))
    values["attempts"] = attempts_from(values["attempts"])
    return Prediction(**values)


def attempts_from(text: str | None) -> tuple[Attempt, ...]:
    return tuple(Attempt(**one) for one in json.loads(text or "[]"))


def attempts_to(attempts: Iterable[Attempt]) -> str:
    return json.dumps([dataclasses.asdict(one) for one in attempts], ensure_ascii=False)


def count(connection: sa.Connection, additions: Mapping[tuple[str, str], int]) -> None:
    """Add to counters, by endpoint and name."""
    # In one order everywhere, so that two transactions never wait for each other.
    rows = [{"endpoint_id": e, "name": n, "value": v} for (e, n), v in sorted(additions.items()) if v]
    if rows:
        connection.execute(_COUNT[connection.dialect.name], rows)


def insert(connection: sa.Connection, table: sa.Table) -> Any:
    """Return an insertion that can say what to do on conflict."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def _count(dialect: Any) -> Any:
    statement = dialect.insert(tallies)
    added = tallies.c.value + statement.excluded.value
    return statement.on_conflict_do_update(index_elements=["endpoint_id", "name"], set_={"value": added})


_COUNT: Mapping[str, Any] = {"sqlite": _count(sqlite), "postgresql": _count(postgresql)}


def lane(endpoint_id: str, state: State, priority: int) -> sa.Select[Any]:
    """Return the query of one stretch of the index, whose rows are in the order of their ids."""
    columns = predictions.c
    return sa.select(predictions).where(
        columns.endpoint_id == endpoint_id, columns.state == int(state), columns.priority == priority
    )
