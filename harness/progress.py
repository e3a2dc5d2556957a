"""What a model says of its progress, by the standard library's logger ``domino.progress``.

    progress = logging.getLogger("domino.progress")
    progress.info("%d of %d rows", done, rows, extra={"fraction": done / rows})

So code that reports needs nothing of ours: elsewhere, and in synchronous endpoints, these are records that nobody keeps.
"""

from __future__ import annotations

import logging

from .log import Redaction
from .slots import Note, Slots
from .tracker import Ticket, Tracker

__all__ = ["Progress", "follow_progress"]

_LOGGER = "domino.progress"


class Progress(logging.Handler):
    """Notes in the slots how far a worker's requests are.

    Parameters
    ----------
    slots : Slots
    worker : int
        This worker's number.
    tracker : Tracker
    redaction : Redaction
        Applied to each text: callers see it.
    """

    def __init__(self, slots: Slots, worker: int, tracker: Tracker, redaction: Redaction) -> None:
        super().__init__(logging.INFO)
        self._slots = slots
        self._worker = worker
        self._tracker = tracker
        self._redaction = redaction

    def emit(self, record: logging.LogRecord) -> None:
        try:
            ticket = self._ticket(record.thread)
            slot = None if ticket is None else ticket.slot
            if ticket is not None and slot is not None:
                text = " ".join(self._redaction(record.getMessage()).split())
                note = Note(ticket.request_id, _fraction(getattr(record, "fraction", None)), text)
                self._slots.note(self._worker, slot, note)
        except Exception:  # what the model says of its progress never fails its prediction
            self.handleError(record)

    def _ticket(self, thread: int | None) -> Ticket | None:
        """Return the request that a thread speaks of: its own, or the only one where the model has made the thread."""
        running = list(self._tracker.running.values())
        own = [ticket for ticket in running if ticket.thread == thread] or running
        return own[0] if len(own) == 1 else None


def _fraction(value: object) -> float | None:
    """Return a share of the whole, whatever number it is; None where it is none."""
    try:
        fraction = float(value)  # type: ignore[arg-type]  # numpy's numbers, and others
    except (TypeError, ValueError, OverflowError):
        return None
    return min(1.0, max(0.0, fraction)) if fraction == fraction else None


def follow_progress(slots: Slots, worker: int, tracker: Tracker, redaction: Redaction) -> None:
    """Note from now on what the model says of its progress."""
    logger = logging.getLogger(_LOGGER)
    logger.disabled = False  # by a model that configures logging while it is loaded
    # Into the replica's log it goes where the model's own logging shows such records, as it would elsewhere.
    logger.propagate = logger.isEnabledFor(logging.INFO)
    logger.setLevel(logging.INFO)
    logger.addHandler(Progress(slots, worker, tracker, redaction))
