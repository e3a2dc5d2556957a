"""What dispatchers do with the queue: lease, heartbeat, store answers, run again, tidy up."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from mlflow_domino.queue.deliveries import claim, delivered, undelivered
from mlflow_domino.queue.prediction import FINISHED, Attempt, Delivery, Held, Lease, Outcome, Progress, State
from mlflow_domino.queue.rows import attempts_from, attempts_to, count
from mlflow_domino.queue.schema import BUCKETS_S, deliveries, keys, predictions
from mlflow_domino.queue.statements import FINISH, LEASE, NEXT, OTHERS, RENEW, RENEWED, TELL, UNWANTED

__all__ = ["LEASE_S", "Turn"]

#: A lease whose heartbeats stay away for so long is another dispatcher's to take.
LEASE_S = 30.0
_BITE = 500
_FIRST_PAUSE_MS = 1000
_LONGEST_PAUSE_MS = 60_000
#: Runs that end with their dispatchers, or to updates, are no strikes; but what takes dispatchers along must end, too.
_MOST_LOSSES = 30
#: Of these so many run again at once: dispatchers are killed for other reasons.
_FORGIVEN = 3
#: Of a prediction's lost runs the last ones are kept.
_HISTORY = 100
_REASON = 500

_columns = predictions.c
_TOO_LATE = sa.case(
    (_columns.attempts.is_(None), json.dumps(["it had not begun by its deadline"])),
    else_=json.dumps(["it had not begun again by its deadline, after runs that were lost"]),
)
#: Of a deadline in a row of `NEXT`.
_DUE = 5


class Turn:
    """What a dispatcher does in one transaction.

    Parameters
    ----------
    connection : Connection
    owner : str
        Name of the dispatcher, its own in each life.
    at_ms : int
        The time now.
    """

    def __init__(self, connection: sa.Connection, owner: str, at_ms: int) -> None:
        self._connection = connection
        self._owner = owner
        self._at_ms = at_ms
        self._counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self._locks = connection.dialect.name != "sqlite"  # in SQLite a transaction has the whole database

    def end(self) -> None:
        """Write the counters; the last thing in a transaction."""
        count(self._connection, self._counts)

    # ---- leases --------------------------------------------------------------------------------------------------

    def take(self, endpoint_id: str, wanted: int, *, capacity: int, version: int, keep_ms: int) -> list[Lease]:
        """Lease predictions, the most urgent and oldest first.

        Parameters
        ----------
        wanted : int
            At most so many.
        capacity : int
            What all dispatchers together may have leased of the endpoint.
        version : int
            Number of the version that is to run them.
        keep_ms : int
            How long those are kept that are found to be too late.
        """
        if self._locks:
            # Of all dispatchers one at a time counts what runs.
            self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(int(endpoint_id[:15], 16))))
            mine = (_columns.endpoint_id == endpoint_id) & (_columns.state == int(State.RUNNING))
            running = self._connection.scalar(sa.select(sa.func.count()).where(mine)) or 0
            wanted = min(wanted, capacity - running)
        taken: list[Lease] = []
        while len(taken) < wanted:
            found = self._next(endpoint_id, wanted - len(taken))
            late = [row for row in found if row[_DUE] <= self._at_ms]
            for row in late:
                self._expire(row[0], endpoint_id, keep_ms)
            leases = [self._leased(endpoint_id, row) for row in found if row[_DUE] > self._at_ms]
            self._lease([lease.id for lease in leases], version)
            taken += leases
            if not late:
                break
        return taken

    def _next(self, endpoint_id: str, limit: int) -> Sequence[tuple[Any, ...]]:
        found: Sequence[tuple[Any, ...]] = NEXT(
            self._connection, {"of_endpoint": endpoint_id, "most": limit}
        ).fetchall()
        return found

    def _lease(self, ids: Sequence[str], version: int) -> None:
        values = {"of_owner": self._owner, "of_version": version, "at_ms": self._at_ms}
        if ids:
            LEASE.many(self._connection, [{"of_id": one, **values} for one in ids])

    def _leased(self, endpoint_id: str, row: tuple[Any, ...]) -> Lease:
        one, fence, request, submitted_ms, deadline_ms, _, strikes, webhook = row
        return Lease(
            Held(one, fence + 1, self._at_ms), endpoint_id, request, submitted_ms, deadline_ms, strikes, bool(webhook)
        )

    def renew(self) -> dict[Held, bool]:
        """Show that this dispatcher lives, and return its leases: whether a caller wants each stopped."""
        RENEW(self._connection, {"of_owner": self._owner, "at_ms": self._at_ms})
        rows = RENEWED(self._connection, {"of_owner": self._owner})
        return {Held(one, fence, leased_ms): bool(cancel) for one, fence, leased_ms, cancel in rows.fetchall()}

    def unwanted(self) -> list[str]:
        """Return what runs by this dispatcher's leases and is to be stopped."""
        return [one for (one,) in UNWANTED(self._connection, {"of_owner": self._owner}).fetchall()]

    def others(self) -> dict[Held, int]:
        """Return what others have leased: of each the number that changes while they live."""
        rows = OTHERS(self._connection, {"of_owner": self._owner})
        return {Held(one, fence, leased_ms): beat for one, fence, leased_ms, beat in rows.fetchall()}

    # ---- answers -------------------------------------------------------------------------------------------------

    def finish(self, lease: Lease, outcome: Outcome, *, keep_ms: int, ran_ms: int | None = None) -> bool:
        """Store how a prediction ended; false where the lease is no longer valid, and nothing changed."""
        values = {
            "of_id": lease.id, "of_fence": lease.fence, "of_leased_ms": lease.held.leased_ms, "of_owner": self._owner,
            "at_ms": self._at_ms, "to_state": int(outcome.state), "to_result": outcome.result, "to_due_ms": self._at_ms + keep_ms,
            "to_errors": json.dumps(outcome.errors, ensure_ascii=False) if outcome.errors else None,
        }  # fmt: skip
        counted = self._counts[lease.endpoint_id]
        if FINISH(self._connection, values).rowcount != 1:
            if self._connection.scalar(sa.select(_columns.id).where(_columns.id == lease.id)):
                counted["fenced"] += 1
            else:
                self._counts.pop(lease.endpoint_id)  # it is gone, and so perhaps is its endpoint
            return False
        counted[outcome.state.name.lower()] += 1
        if ran_ms is not None:
            _observe(counted, "ran", ran_ms)
            _observe(counted, "waited", self._at_ms - ran_ms - lease.submitted_ms)
        if lease.webhook:
            self._tell([lease.id])
        return True

    def release(self, lease: Lease) -> None:
        """Give back what was leased and not sent to any replica."""
        self._change(lease.held, {"state": int(State.QUEUED), "owner": None, "due_ms": lease.deadline_ms})

    def note(self, lease: Lease, progress: Progress) -> None:
        """Write down how far the model is."""
        self._change(lease.held, {"progress": json.dumps(dataclasses.asdict(progress))})

    def lose(self, lease: Lease, attempt: Attempt, *, most: int, keep_ms: int, strike: bool = True) -> State | None:
        """Queue a prediction again whose run came to nothing, or fail it where that was the last attempt.

        Parameters
        ----------
        most : int
            Attempts at most.
        strike : bool
            Whether this one counts: the replica was lost, rather than taken away.
        """
        row = self._lost(lease.id)
        if row is None:
            return None
        strikes, losses = row.strikes + strike, row.losses + (not strike)
        pause_ms = _pause_ms(strikes) if strike else 0
        over = strikes >= most or losses >= _MOST_LOSSES
        return self._again(
            lease.held, row, attempt, (strikes, losses), pause_ms=None if over else pause_ms, keep_ms=keep_ms
        )

    def keep_running(self, lease: Lease) -> None:
        """Note that a prediction whose caller wanted it stopped could not be."""
        self._change(lease.held, {"cancel": 0})

    def abandon(self, held: Held, keep_ms: Mapping[str, int], default_keep_ms: int) -> str | None:
        """Queue again what a dispatcher had leased that is gone, at first at once; return the endpoint's id."""
        row = self._lost(held.id)
        if row is None:
            return None
        attempt = Attempt(held.fence, row.version, held.leased_ms, self._at_ms, "its dispatcher was lost")
        losses = row.losses + 1
        pause_ms = _pause_ms(losses - _FORGIVEN) if losses > _FORGIVEN else 0
        state = self._again(
            held, row, attempt, (row.strikes, losses), pause_ms=None if losses >= _MOST_LOSSES else pause_ms,
            keep_ms=keep_ms.get(row.endpoint_id, default_keep_ms),
        )  # fmt: skip
        return None if state is None else str(row.endpoint_id)

    def _lost(self, prediction_id: str) -> sa.Row[Any] | None:
        names = (
            "endpoint_id",
            "version",
            "deadline_ms",
            "strikes",
            "losses",
            "attempts",
            "cancel",
            "webhook",
        )
        query = sa.select(*(_columns[name] for name in names)).where(_columns.id == prediction_id)
        return self._connection.execute(query).one_or_none()

    def _again(
        self, held: Held, row: sa.Row[Any], attempt: Attempt, lost: tuple[int, int], *, pause_ms: int | None, keep_ms: int
    ) -> State | None:  # fmt: skip
        """Queue again what was lost so often, after a pause; fail it where that is None, and cancel it where that was asked."""
        attempt = dataclasses.replace(attempt, reason=attempt.reason[:_REASON])
        history = attempts_to([*attempts_from(row.attempts), attempt][-_HISTORY:])
        values: dict[str, object] = {"attempts": history, "strikes": lost[0], "losses": lost[1], "owner": None}
        if row.cancel:
            state = State.CANCELLED
            values |= self._failed(["cancelled while it ran"], keep_ms)
        elif pause_ms is None:
            state = State.FAILED
            reason = f"no answer came in {sum(lost)} attempts; the last one: {attempt.reason}"
            values |= self._failed([reason], keep_ms)
        else:
            state = State.DELAYED if pause_ms else State.QUEUED
            # The deadline is of the time in the queue, and while it ran it was not there.
            deadline_ms = row.deadline_ms + max(0, self._at_ms - attempt.begun_ms)
            values["deadline_ms"] = deadline_ms
            values["due_ms"] = self._at_ms + pause_ms if pause_ms else deadline_ms
        if not self._change(held, values | {"state": int(state)}):
            return None
        ended = state in FINISHED
        self._counts[row.endpoint_id][state.name.lower() if ended else "retried"] += 1
        if ended and row.webhook:
            self._tell([held.id])
        return state

    def _change(self, held: Held, values: Mapping[str, object]) -> bool:
        """Change a running prediction; false where the lease is no longer valid."""
        same = (_columns.id == held.id) & (_columns.fence == held.fence) & (_columns.started_ms == held.leased_ms)
        running = _columns.state == int(State.RUNNING)
        return self._connection.execute(predictions.update().where(same & running).values(**values)).rowcount == 1

    def _failed(self, errors: Sequence[str], keep_ms: int) -> dict[str, object]:
        return {
            "state": int(State.FAILED), "finished_ms": self._at_ms, "owner": None, "due_ms": self._at_ms + keep_ms,
            "errors": json.dumps(errors, ensure_ascii=False),
        }  # fmt: skip

    # ---- tidying up ----------------------------------------------------------------------------------------------

    def wake(self) -> set[str]:
        """Queue those again whose pause is over; return their endpoints."""
        # A pause that is longer than any was made by another clock.
        over = (_columns.due_ms <= self._at_ms) | (_columns.due_ms > self._at_ms + 2 * _LONGEST_PAUSE_MS)
        query = (
            sa.select(_columns.id, _columns.endpoint_id).where(_columns.state == int(State.DELAYED), over).limit(_BITE)
        )
        rows = self._connection.execute(query).all()
        if rows:
            again = _columns.id.in_([row.id for row in rows]) & (_columns.state == int(State.DELAYED))
            values = {"state": int(State.QUEUED), "due_ms": _columns.deadline_ms}
            self._connection.execute(predictions.update().where(again).values(**values))
        return {str(row.endpoint_id) for row in rows}

    def expire(self, keep_ms: dict[str, int], default_keep_ms: int) -> int:
        """Fail what has waited for longer than its caller, or the endpoint, lets it; return how many."""
        late = (_columns.state == int(State.QUEUED)) & (_columns.due_ms <= self._at_ms)
        rows = self._connection.execute(sa.select(_columns.id, _columns.endpoint_id).where(late).limit(_BITE)).all()
        for row in rows:
            self._expire(row.id, row.endpoint_id, keep_ms.get(row.endpoint_id, default_keep_ms))
        return len(rows)

    def _expire(self, prediction_id: str, endpoint_id: str, keep_ms: int) -> None:
        queued = (_columns.id == prediction_id) & (_columns.state == int(State.QUEUED))
        values = self._failed([], keep_ms) | {"errors": _TOO_LATE}
        if self._connection.execute(predictions.update().where(queued).values(**values)).rowcount == 1:
            self._counts[endpoint_id]["expired"] += 1
            self._tell([prediction_id])

    def remove(self) -> int:
        """Remove what has been kept for long enough, a bite of it; return how many."""
        removed = 0
        for state in FINISHED:
            old = (_columns.state == int(state)) & (_columns.due_ms <= self._at_ms)
            ids = list(self._connection.scalars(sa.select(_columns.id).where(old).limit(_BITE)))
            if ids:
                for table in (keys, deliveries):
                    self._connection.execute(table.delete().where(table.c.prediction_id.in_(ids)))
                self._connection.execute(predictions.delete().where(_columns.id.in_(ids), old))
                removed += len(ids)
        return removed

    # ---- webhooks ------------------------------------------------------------------------------------------------

    def claim(self, limit: int, busy: Iterable[str]) -> list[Delivery]:
        """Return webhooks to call now, of endpoints that are not `busy`."""
        return claim(self._connection, self._at_ms, limit, busy=busy)

    def delivered(self, delivery: Delivery) -> None:
        delivered(self._connection, delivery, self._at_ms)

    def undelivered(self, delivery: Delivery, reason: str, *, again: bool) -> None:
        undelivered(self._connection, delivery, reason, self._at_ms, again=again)
        self._counts[delivery.endpoint_id]["webhook_failures"] += 1

    def _tell(self, ids: Sequence[str]) -> None:
        """Have the webhooks of predictions called."""
        TELL.many(self._connection, [{"of_id": one, "at_ms": self._at_ms} for one in ids])


def _pause_ms(times: int) -> int:
    return int(min(_FIRST_PAUSE_MS << min(times - 1, 20), _LONGEST_PAUSE_MS))


def _observe(counted: collections.Counter[str], name: str, ms: int) -> None:
    bucket = next(n for n, limit in enumerate(BUCKETS_S) if ms <= limit * 1000)
    counted[f"{name}_{bucket}"] += 1
    counted[f"{name}_ms"] += max(0, ms)
