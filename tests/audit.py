"""What the database itself notes of each lease and each answer, whoever writes them and whatever their clocks say."""

from __future__ import annotations

import collections
from dataclasses import dataclass

import sqlalchemy as sa

from mlflow_domino.queue.database import Database
from mlflow_domino.queue.prediction import FINISHED, State

__all__ = ["Change", "audit", "audited"]

_TABLE = (
    "CREATE TABLE domino_audit "
    "(n {number} PRIMARY KEY, id VARCHAR(36), fence INTEGER, was INTEGER, state INTEGER, at_ms DOUBLE PRECISION)"
)
_NOTE = (
    "INSERT INTO domino_audit (id, fence, was, state, at_ms) VALUES (NEW.id, NEW.fence, OLD.state, NEW.state, {now})"
)
_SQLITE = (
    _TABLE.format(number="INTEGER"),
    "CREATE TRIGGER domino_audit_change AFTER UPDATE OF state ON domino_predictions WHEN NEW.state <> OLD.state "
    f"BEGIN {_NOTE.format(now='(julianday(' + repr('now') + ') - 2440587.5) * 86400000')}; END",
)
_POSTGRESQL = (
    _TABLE.format(number="SERIAL"),
    "CREATE FUNCTION domino_audit_note() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN {_NOTE.format(now='extract(epoch from clock_timestamp()) * 1000')}; RETURN NULL; END $$",
    "CREATE TRIGGER domino_audit_change AFTER UPDATE OF state ON domino_predictions FOR EACH ROW "
    "WHEN (NEW.state <> OLD.state) EXECUTE FUNCTION domino_audit_note()",
)


@dataclass(frozen=True)
class Change:
    """A prediction went from one state to another.

    Attributes
    ----------
    fence : int
        Of the last lease.
    at_ms : float
        By the clock of the database's machine.
    """

    fence: int
    was: State
    state: State
    at_ms: float

    @property
    def leases(self) -> bool:
        return self.state is State.RUNNING

    @property
    def answers(self) -> bool:
        return self.state in FINISHED


def audit(database: Database) -> None:
    """Have the database note every change from now on."""

    def make(connection: sa.Connection) -> None:
        for statement in _SQLITE if database.sqlite else _POSTGRESQL:
            connection.exec_driver_sql(statement)

    database.write(make)


def audited(database: Database) -> dict[str, list[Change]]:
    """Return what was noted of each prediction, in the order in which it happened."""
    query = sa.text("SELECT id, fence, was, state, at_ms FROM domino_audit ORDER BY n")
    found: dict[str, list[Change]] = collections.defaultdict(list)
    for one, fence, was, state, at_ms in database.read(lambda connection: connection.execute(query).all()):
        found[one].append(Change(fence, State(was), State(state), at_ms))
    return found
