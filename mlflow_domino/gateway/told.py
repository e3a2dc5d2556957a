"""What is told of a prediction to those who ask for more than Domino tells."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow_domino.queue.prediction import Attempt, Prediction, State

if TYPE_CHECKING:
    from mlflow_domino.queue.queue import Depth

__all__ = ["brief", "counted", "detailed"]

_COUNTED = ("succeeded", "failed", "cancelled", "expired", "retried", "webhook_failures")


def brief(found: Prediction) -> dict[str, Any]:
    """Return a line of a list."""
    return {
        "asyncPredictionId": found.id,
        "status": found.state.status,
        "phase": found.state.name.lower(),
        "priority": found.priority,
        "submitted": _time(found.submitted_ms),
        "finished": _time(found.finished_ms),
        **({"errors": list(found.errors)} if found.errors else {}),
        **({"progress": _progress(found)} if found.progress and found.state is State.RUNNING else {}),
    }


def counted(depth: Depth, counts: Mapping[str, int], at_ms: int) -> dict[str, Any]:
    """Return how much waits and runs, and what became of all before."""
    age_s = None if depth.oldest_ms is None else max(0, at_ms - depth.oldest_ms) / 1000
    told = {"queued": depth.queued, "delayed": depth.delayed, "running": depth.running, "oldest_age_s": age_s}
    ended = {name: counts.get(name, 0) for name in _COUNTED}
    runs = sum(number for name, number in counts.items() if name.startswith("waited_") and name != "waited_ms")
    mean_s = counts.get("waited_ms", 0) / runs / 1000 if runs else None
    return {"depth": told, "counts": {**ended, "mean_time_in_queue_s": mean_s}}


def detailed(
    found: Prediction, *, position: int | None, webhook: Mapping[str, Any] | None, at_ms: int
) -> dict[str, Any]:
    """Return everything, but for what Domino tells already.

    Parameters
    ----------
    position : int or None
        How many are before it, where that is known.
    """
    begun = found.started_ms if found.state not in (State.QUEUED, State.DELAYED) else None
    ended = found.finished_ms or at_ms
    return {
        "phase": found.state.name.lower(),
        "position": position,
        "priority": found.priority,
        "version": found.version,
        "submitted": _time(found.submitted_ms),
        "started": _time(begun),
        "finished": _time(found.finished_ms),
        "deadline": _time(found.deadline_ms),
        "time_in_queue_ms": max(0, (begun or ended) - found.submitted_ms - _lost_ms(found)),
        "time_running_ms": max(0, ended - begun) if begun else None,
        "progress": _progress(found) if begun else None,
        "attempts": [_attempt(one) for one in found.attempts],
        "webhook": None if webhook is None else _webhook(webhook),
    }


def _lost_ms(found: Prediction) -> int:
    """Return for how long runs went on that were lost."""
    return sum(max(0, one.ended_ms - one.begun_ms) for one in found.attempts)


def _progress(found: Prediction) -> dict[str, Any] | None:
    return None if found.progress is None else dataclasses.asdict(found.progress)


def _attempt(one: Attempt) -> dict[str, Any]:
    return {"version": one.version, "started": _time(one.begun_ms), "ended": _time(one.ended_ms), "reason": one.reason}


def _webhook(told: Mapping[str, Any]) -> dict[str, Any]:
    document = {key: value for key, value in told.items() if not key.endswith("_ms")}
    return {**document, "next": _time(told["next_ms"]), "changed": _time(told["changed_ms"])}


def _time(ms: int | None) -> str | None:
    """Return a time as ISO 8601, in UTC."""
    if ms is None:
        return None
    moment = datetime.datetime.fromtimestamp(ms / 1000, tz=datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
