"""Asynchronous predictions as frozen values."""

from __future__ import annotations

import enum
import re
import secrets
import time
import uuid
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = [
    "FINISHED", "PRIORITIES", "UNFINISHED", "Attempt", "Delivery", "Held", "Lease", "Outcome", "Prediction", "Progress", "State",
    "Submission", "Webhook", "begun_ms", "new_prediction_id", "now_ms",
]  # fmt: skip

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
#: The first is served first.
PRIORITIES = (0, 1, 2)


class State(enum.IntEnum):
    """Where a prediction is; the numbers are in the database."""

    QUEUED = 0
    #: To be run again after a pause.
    DELAYED = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5

    @property
    def status(self) -> str:
        """Domino's word for it, the only one that callers know."""
        return {State.SUCCEEDED: "succeeded", State.FAILED: "failed", State.CANCELLED: "failed"}.get(self, "queued")


UNFINISHED = (State.QUEUED, State.DELAYED, State.RUNNING)
FINISHED = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def new_prediction_id(at_ms: int) -> str:
    """Return a UUID of version 7, which begins with its time: it sorts by it, and tells it without a row."""
    value = (at_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))


def begun_ms(prediction_id: str) -> int | None:
    """Return the time in an id, None where it is no id of ours."""
    return int(prediction_id[:8] + prediction_id[9:13], 16) if _ID.fullmatch(prediction_id) else None


@dataclass(frozen=True)
class Webhook:
    """Whom to tell that a prediction ended.

    Attributes
    ----------
    secret : str
        Signs what is sent; empty: it is not signed.
    """

    url: str
    secret: str = ""


@dataclass(frozen=True)
class Submission:
    """What a caller wants to have predicted.

    Attributes
    ----------
    request : str
        JSON, as it goes to the replica.
    priority : int
        One of `PRIORITIES`.
    deadline_ms : int
        It is failed when it has not begun by then.
    key, digest : str
        Of the caller's Idempotency-Key, and of what it was used for; empty where there is none.
    """

    endpoint_id: str
    request: str
    deadline_ms: int
    priority: int = 1
    key: str = ""
    digest: str = ""
    webhook: Webhook | None = None


@dataclass(frozen=True)
class Attempt:
    """A run that came to no answer of the model's.

    Attributes
    ----------
    version : int
        Number of the version that ran it.
    """

    fence: int
    version: int
    begun_ms: int
    ended_ms: int
    reason: str


@dataclass(frozen=True)
class Progress:
    """What a model says of how far it is.

    Attributes
    ----------
    fraction : float or None
        From 0 to 1; None where it says only words.
    text : str
    """

    fraction: float | None
    text: str


@dataclass(frozen=True)
class Prediction:
    """One row of the queue.

    Attributes
    ----------
    due_ms : int
        When somebody must look at it: queued, its deadline; delayed, when it is queued again; ended, when it is
        removed. Running, a number that each heartbeat changes.
    strikes : int
        Runs that were lost with their replica.
    losses : int
        Runs that were lost otherwise: with their dispatcher, or to an update.
    fence : int
        Number of leases so far.
    version : int or None
        Number of the version that runs or ran it.
    result, errors : str or None, tuple of str
        Of one that ended; the result is JSON.
    attempts : tuple of Attempt
        Runs that were lost.
    progress : Progress or None
        What was last heard from the model that runs or ran it.
    """

    id: str
    endpoint_id: str
    state: State
    priority: int
    due_ms: int
    deadline_ms: int
    submitted_ms: int
    started_ms: int | None
    finished_ms: int | None
    strikes: int
    losses: int
    fence: int
    version: int | None
    cancel: bool
    webhook: bool
    request: str
    result: str | None
    errors: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    progress: Progress | None = None


class Held(NamedTuple):
    """Which lease of a prediction.

    Attributes
    ----------
    leased_ms : int
        When it was given; a database that crashed may have forgotten an earlier one, and given its fence again.
    """

    id: str
    fence: int
    leased_ms: int


@dataclass(frozen=True)
class Lease:
    """A prediction that a dispatcher may have run."""

    held: Held
    endpoint_id: str
    request: str
    submitted_ms: int
    deadline_ms: int
    strikes: int
    webhook: bool

    @property
    def id(self) -> str:
        return self.held.id

    @property
    def fence(self) -> int:
        return self.held.fence


@dataclass(frozen=True)
class Outcome:
    """How a prediction ended; `result` is JSON."""

    state: State
    result: str | None = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delivery:
    """A webhook that is to be called now.

    Attributes
    ----------
    id : str
        The same at each attempt.
    data : dict
        What is to be told.
    """

    id: str
    prediction_id: str
    endpoint_id: str
    url: str
    secret: str
    attempts: int
    ended_ms: int
    data: dict[str, Any]
