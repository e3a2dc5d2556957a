"""The statements that run for every prediction, compiled once, and run by the database's driver itself.

SQLAlchemy writes them, so that they are the same for every database. That it ran them too would cost ten times what
SQLite needs for them, and a prediction needs some ten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from mlflow_domino.queue.prediction import State
from mlflow_domino.queue.schema import COUNTED, counts, deliveries, predictions

__all__ = [
    "ADD", "FINISH", "LEASE", "NEXT", "OTHERS", "POLL", "RENEW", "RENEWED", "SUBMIT", "SUBMIT_WEBHOOK", "TELL", "UNWANTED", "Statement",
    "lane",
]  # fmt: skip

_DIALECTS = {"sqlite": sqlite, "postgresql": postgresql}


class Statement:
    """A statement with named values.

    Parameters
    ----------
    built : Executable or mapping
        The statement, or one for each dialect.
    """

    def __init__(self, built: sa.Executable | Mapping[str, sa.Executable]) -> None:
        self._built = built
        self._compiled: dict[str, tuple[str, Sequence[str] | None, dict[str, Any]]] = {}

    def __call__(self, connection: sa.Connection, values: Mapping[str, Any]) -> Any:
        """Run it; return the driver's cursor."""
        text, order, known = self._text(connection.dialect)
        cursor = connection.connection.cursor()
        cursor.execute(text, _arguments(order, known, values))
        return cursor

    def many(self, connection: sa.Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run it for each of many rows."""
        text, order, known = self._text(connection.dialect)
        connection.connection.cursor().executemany(text, [_arguments(order, known, row) for row in rows])

    def _text(self, dialect: sa.Dialect) -> tuple[str, Sequence[str] | None, dict[str, Any]]:
        """Return the text, the order of values where they have no names, and values that are part of the statement."""
        found = self._compiled.get(dialect.name)
        if found is None:
            built = self._built[dialect.name] if isinstance(self._built, Mapping) else self._built
            compiled: Any = built.compile(dialect=dialect)  # type: ignore[attr-defined]  # every statement has it
            known = {name: value for name, value in compiled.params.items() if value is not None}
            found = self._compiled[dialect.name] = str(compiled), compiled.positiontup, known
        return found


def _arguments(order: Sequence[str] | None, known: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    if order is None:
        return {**known, **values}
    return [values[name] if name in values else known[name] for name in order]


def _value(name: str) -> Any:
    return sa.bindparam(name)


_columns = predictions.c
_running = _columns.state == int(State.RUNNING)
_mine = _running & (_columns.owner == _value("of_owner"))
#: A running prediction, unless the fence has moved on, or was lost with the lease and given again.
_leased = (
    (_columns.id == _value("of_id"))
    & (_columns.fence == _value("of_fence"))
    & (_columns.started_ms == _value("of_leased_ms"))
    & _running
)
_own = (_columns.id == _value("of_id")) & (_columns.endpoint_id == _value("of_endpoint"))

SUBMIT = Statement(
    predictions.insert().values(
        **{name: _value(name) for name in ("id", "endpoint_id", "priority", "due_ms", "deadline_ms", "submitted_ms", "webhook")},
        request=_value("request"), state=sa.literal_column(str(int(State.QUEUED))), strikes=sa.literal_column("0"),
        losses=sa.literal_column("0"), fence=sa.literal_column("0"), cancel=sa.literal_column("0"),
    )
)  # fmt: skip
SUBMIT_WEBHOOK = Statement(
    deliveries.insert().values(
        **{name: _value(name) for name in ("prediction_id", "id", "endpoint_id", "url", "secret", "changed_ms")},
        state=sa.literal_column("'waiting'"), attempts=sa.literal_column("0"),
    )
)  # fmt: skip
POLL = Statement(sa.select(_columns.state, _columns.result, _columns.errors).where(_own))

_next = (
    sa.select(
        _columns.id, _columns.fence, _columns.request, _columns.submitted_ms, _columns.deadline_ms, _columns.due_ms,
        _columns.strikes, _columns.webhook,
    )
    .where(_columns.endpoint_id == _value("of_endpoint"), _columns.state == int(State.QUEUED))
    .order_by(_columns.priority, _columns.id)
    .limit(_value("most"))
)  # fmt: skip
#: id, fence, request, submitted_ms, deadline_ms, due_ms, strikes and webhook of what is next.
NEXT = Statement({"sqlite": _next, "postgresql": _next.with_for_update(skip_locked=True)})
LEASE = Statement(
    predictions.update()
    .where(_columns.id == _value("of_id"))
    .values(
        state=int(State.RUNNING), fence=_columns.fence + 1, owner=_value("of_owner"), version=_value("of_version"),
        started_ms=_value("at_ms"), due_ms=_value("at_ms"), progress=sa.null(),
    )
)  # fmt: skip
RENEW = Statement(
    predictions.update()
    .where(_mine)
    .values(due_ms=sa.case((_columns.due_ms < _value("at_ms"), _value("at_ms")), else_=_columns.due_ms + 1))
)
#: id, fence, started_ms and cancel.
RENEWED = Statement(sa.select(_columns.id, _columns.fence, _columns.started_ms, _columns.cancel).where(_mine))
#: id.
UNWANTED = Statement(sa.select(_columns.id).where(_mine, _columns.cancel == 1))
#: id, fence, started_ms and due_ms.
OTHERS = Statement(
    sa.select(_columns.id, _columns.fence, _columns.started_ms, _columns.due_ms).where(
        _running, _columns.owner != _value("of_owner")
    )
)
FINISH = Statement(
    predictions.update()
    .where(_leased, _columns.owner == _value("of_owner"))
    .values(
        state=_value("to_state"), result=_value("to_result"), errors=_value("to_errors"),
        finished_ms=_value("at_ms"), due_ms=_value("to_due_ms"), owner=sa.null(),
    )
)  # fmt: skip
TELL = Statement(
    deliveries.update()
    .where(deliveries.c.prediction_id == _value("of_id"))
    .values(state=sa.literal_column("'pending'"), due_ms=_value("at_ms"), changed_ms=_value("at_ms"))
)


def _add(dialect: Any) -> sa.Executable:
    statement = dialect.insert(counts).values({name: _value(name) for name in ("endpoint_id", *COUNTED)})
    added = {name: counts.c[name] + statement.excluded[name] for name in COUNTED}
    whole: sa.Executable = statement.on_conflict_do_update(index_elements=["endpoint_id"], set_=added)
    return whole


ADD = Statement({name: _add(dialect) for name, dialect in _DIALECTS.items()})


def lane(endpoint_id: str, state: State, priority: int) -> sa.Select[Any]:
    """Return the query of one stretch of the index, whose rows are in the order of their ids."""
    return sa.select(predictions).where(
        _columns.endpoint_id == endpoint_id, _columns.state == int(state), _columns.priority == priority
    )
