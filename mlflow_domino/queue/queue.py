"""What callers do with the queue: submit, look, cancel, run again; and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mlflow_domino.errors import Conflict, NotFound
from mlflow_domino.queue.database import Database
from mlflow_domino.queue.prediction import (
    PRIORITIES,
    UNFINISHED,
    Prediction,
    State,
    Submission,
    new_prediction_id,
    now_ms,
)
from mlflow_domino.queue.rows import count, insert, prediction_of
from mlflow_domino.queue.schema import COUNTED, counts, deliveries, keys, predictions
from mlflow_domino.queue.statements import POLL, SUBMIT, SUBMIT_WEBHOOK, lane

__all__ = ["Depth", "Queue"]

_BITE = 500


@dataclass(frozen=True)
class Depth:
    """How much of an endpoint waits and runs.

    Attributes
    ----------
    oldest_ms : int or None
        When the oldest one that waits was submitted.
    """

    queued: int
    delayed: int
    running: int
    oldest_ms: int | None

    @property
    def waiting(self) -> int:
        return self.queued + self.delayed


class Queue:
    """The callers' side of a queue.

    Parameters
    ----------
    database : Database
    clock : callable
        Gives milliseconds since the epoch.
    """

    def __init__(self, database: Database, *, clock: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._clock = clock

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def submit(self, submission: Submission) -> tuple[str, bool]:
        """Accept a prediction; when this returns it is on disk.

        Returns
        -------
        str, bool
            Its id, and whether it is one that was accepted before, under the same key.

        Raises
        ------
        Conflict
            The key was used for another request.
        Unavailable
            It is not accepted.
        """
        at_ms = self._clock()
        prediction_id = new_prediction_id(at_ms)
        row = _row(submission, prediction_id, at_ms)
        webhook = _webhook_row(submission, prediction_id, at_ms) if submission.webhook else None

        def work(connection: sa.Connection) -> tuple[str, bool]:
            earlier = _keyed(connection, submission, prediction_id) if submission.key else None
            if earlier is not None:
                return earlier, True
            SUBMIT(connection, row)
            if webhook is not None:
                SUBMIT_WEBHOOK(connection, webhook)
            return prediction_id, False

        return self._database.write(work)

    def earlier(self, submission: Submission) -> str | None:
        """Return the prediction that was accepted under the same key, None where there is none.

        Raises
        ------
        Conflict
            The key was used for another request.
        """
        if not submission.key:
            return None
        same = (keys.c.endpoint_id == submission.endpoint_id) & (keys.c.key == submission.key)

        def work(connection: sa.Connection) -> str | None:
            known = connection.execute(sa.select(keys).where(same)).one_or_none()
            return None if known is None else _same(known, submission)

        return self._database.read(work)

    def get(self, endpoint_id: str, prediction_id: str) -> Prediction | None:
        """Return a prediction of the endpoint's, None where there is none."""

        def work(connection: sa.Connection) -> Prediction | None:
            row = connection.execute(_one(endpoint_id, prediction_id)).one_or_none()
            return None if row is None else prediction_of(row)

        return self._database.read(work)

    def poll(self, endpoint_id: str, prediction_id: str) -> tuple[State, str | None, str | None] | None:
        """Return state, result and errors of a prediction, the last two in JSON; None where there is none."""

        def work(connection: sa.Connection) -> tuple[State, str | None, str | None] | None:
            row = POLL(connection, {"of_id": prediction_id, "of_endpoint": endpoint_id}).fetchone()
            return None if row is None else (State(row[0]), row[1], row[2])

        return self._database.read(work)

    def find(
        self, endpoint_id: str, *, states: Iterable[State] = tuple(State), limit: int = 100, before: str = "~"
    ) -> list[Prediction]:
        """Return the newest predictions in some states.

        Parameters
        ----------
        before : str
            Only those older than this id.
        """

        def work(connection: sa.Connection) -> list[Prediction]:
            rows = [
                row
                for state in states
                for priority in PRIORITIES
                for row in connection.execute(
                    lane(endpoint_id, state, priority)
                    .where(predictions.c.id < before)
                    .order_by(predictions.c.id.desc())
                    .limit(limit)
                )
            ]
            rows.sort(key=lambda row: str(row.id), reverse=True)
            return [prediction_of(row) for row in rows[:limit]]

        return self._database.read(work)

    def cancel(self, endpoint_id: str, prediction_id: str, *, keep_ms: int) -> State:
        """End a prediction that waits; note of one that runs that it is to be stopped.

        Parameters
        ----------
        keep_ms : int
            How long one that ends here is kept.

        Returns
        -------
        State
            What it is now: `CANCELLED`, `RUNNING` (its dispatcher stops it, if that can be done), or how it had ended.

        Raises
        ------
        NotFound
            There is no such prediction.
        """
        at_ms = self._clock()

        def work(connection: sa.Connection) -> State:
            row = connection.execute(_one(endpoint_id, prediction_id).with_for_update()).one_or_none()
            if row is None:
                raise NotFound(f"There is no prediction {prediction_id[:64]}.")
            if row.state in (State.QUEUED, State.DELAYED):
                values = {
                    "state": int(State.CANCELLED),
                    "finished_ms": at_ms,
                    "due_ms": at_ms + keep_ms,
                    "errors": json.dumps(["cancelled before it ran"]),
                }
                connection.execute(predictions.update().where(predictions.c.id == prediction_id).values(**values))
                _end_delivery(connection, prediction_id, at_ms)
                count(connection, {endpoint_id: {"cancelled": 1}})
                return State.CANCELLED
            if row.state == State.RUNNING:
                connection.execute(predictions.update().where(predictions.c.id == prediction_id).values(cancel=1))
            return State(row.state)

        return self._database.write(work)

    def retry(self, endpoint_id: str, prediction_id: str, *, deadline_ms: int) -> None:
        """Queue a prediction again that failed or was cancelled, with all its attempts.

        Raises
        ------
        NotFound
            There is no such prediction.
        Conflict
            It has succeeded, or has not ended.
        """
        at_ms = self._clock()

        def work(connection: sa.Connection) -> None:
            row = connection.execute(_one(endpoint_id, prediction_id).with_for_update()).one_or_none()
            if row is None:
                raise NotFound(f"There is no prediction {prediction_id[:64]}.")
            if row.state not in (State.FAILED, State.CANCELLED):
                raise Conflict(
                    f"Prediction {prediction_id} is {State(row.state).name.lower()}; only failed ones run again."
                )
            values = {
                "state": int(State.QUEUED), "due_ms": deadline_ms, "deadline_ms": deadline_ms, "finished_ms": None,
                "strikes": 0, "losses": 0, "cancel": 0, "errors": None, "result": None,
            }  # fmt: skip
            connection.execute(predictions.update().where(predictions.c.id == prediction_id).values(**values))
            connection.execute(
                deliveries.update()
                .where(deliveries.c.prediction_id == prediction_id)
                .values(
                    state="waiting", attempts=0, due_ms=None, reason=None, id=new_prediction_id(at_ms), changed_ms=at_ms
                )
            )

        self._database.write(work)

    def position(self, prediction: Prediction, *, limit: int = 1000) -> int | None:
        """Return how many are before a queued prediction, None where they are too many to count."""

        def work(connection: sa.Connection) -> int:
            found = 0
            for priority in range(prediction.priority + 1):
                query = lane(prediction.endpoint_id, State.QUEUED, priority).with_only_columns(predictions.c.id)
                if priority == prediction.priority:
                    query = query.where(predictions.c.id < prediction.id)
                counted = sa.select(sa.func.count()).select_from(query.limit(limit).subquery())
                found += connection.scalar(counted) or 0
            return found

        found = self._database.read(work)
        return found if found < limit else None

    def webhook(self, prediction_id: str) -> dict[str, object] | None:
        """Return what became of a prediction's webhook."""
        query = sa.select(deliveries).where(deliveries.c.prediction_id == prediction_id)
        row = self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            return None
        return {
            "url": row.url, "state": row.state, "attempts": row.attempts, "next_ms": row.due_ms,
            "changed_ms": row.changed_ms, "reason": row.reason, "delivery_id": row.id,
        }  # fmt: skip

    def depth(self, endpoint_id: str) -> Depth:
        """Return how much waits and runs."""
        columns = predictions.c

        def work(connection: sa.Connection) -> Depth:
            counted = {}
            for state in UNFINISHED:
                query = sa.select(sa.func.count()).where(
                    columns.endpoint_id == endpoint_id, columns.state == int(state)
                )
                counted[state] = connection.scalar(query) or 0
            first = [
                connection.scalar(
                    lane(endpoint_id, state, priority)
                    .with_only_columns(columns.submitted_ms)
                    .order_by(columns.id)
                    .limit(1)
                )
                for state in (State.QUEUED, State.DELAYED)
                for priority in PRIORITIES
            ]
            oldest = min((ms for ms in first if ms is not None), default=None)
            return Depth(counted[State.QUEUED], counted[State.DELAYED], counted[State.RUNNING], oldest)

        return self._database.read(work)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the counters of each endpoint, by name."""
        rows = self._database.read(lambda connection: connection.execute(sa.select(counts)).all())
        return {row.endpoint_id: {name: getattr(row, name) for name in COUNTED} for row in rows}

    def forget(self, endpoint_id: str) -> None:
        """Remove everything of an endpoint's, in small transactions."""
        of_endpoint = sa.select(predictions.c.id).where(predictions.c.endpoint_id == endpoint_id).limit(_BITE)

        def bite(connection: sa.Connection) -> int:
            deleted = connection.execute(predictions.delete().where(predictions.c.id.in_(of_endpoint))).rowcount
            if deleted < _BITE:
                for table in (deliveries, keys, counts):
                    connection.execute(table.delete().where(table.c.endpoint_id == endpoint_id))
            return deleted

        while self._database.write(bite) == _BITE:
            pass


def _row(submission: Submission, prediction_id: str, at_ms: int) -> dict[str, object]:
    return {
        "id": prediction_id,
        "endpoint_id": submission.endpoint_id,
        "priority": submission.priority,
        "due_ms": submission.deadline_ms,
        "deadline_ms": submission.deadline_ms,
        "submitted_ms": at_ms,
        "webhook": int(submission.webhook is not None),
        "request": submission.request,
    }


def _webhook_row(submission: Submission, prediction_id: str, at_ms: int) -> dict[str, object]:
    assert submission.webhook is not None
    return {
        "prediction_id": prediction_id,
        "id": new_prediction_id(at_ms),
        "endpoint_id": submission.endpoint_id,
        "url": submission.webhook.url,
        "secret": submission.webhook.secret,
        "changed_ms": at_ms,
    }


def _one(endpoint_id: str, prediction_id: str) -> sa.Select[tuple[object, ...]]:
    return sa.select(predictions).where(predictions.c.id == prediction_id, predictions.c.endpoint_id == endpoint_id)


def _keyed(connection: sa.Connection, submission: Submission, prediction_id: str) -> str | None:
    """Return the prediction that was submitted under the same key before; else note that this one is."""
    row = {
        "endpoint_id": submission.endpoint_id, "key": submission.key, "prediction_id": prediction_id, "digest": submission.digest,
    }  # fmt: skip
    connection.execute(insert(connection, keys).values(**row).on_conflict_do_nothing())
    same = (keys.c.endpoint_id == submission.endpoint_id) & (keys.c.key == submission.key)
    known = connection.execute(sa.select(keys).where(same)).one()
    if known.prediction_id == prediction_id:
        return None
    return _same(known, submission)


def _same(known: Any, submission: Submission) -> str:
    """Return the prediction of a key, if the request is the same."""
    if known.digest != submission.digest:
        raise Conflict("This Idempotency-Key was used for another request.")
    return str(known.prediction_id)


def _end_delivery(connection: sa.Connection, prediction_id: str, at_ms: int) -> None:
    connection.execute(
        deliveries.update()
        .where(deliveries.c.prediction_id == prediction_id)
        .values(state="pending", due_ms=at_ms, changed_ms=at_ms)
    )
