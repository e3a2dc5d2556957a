"""Concurrent requests of a process, joined into one prediction.

A thread that has checked a request looks whether another caller waits to be accepted. If nobody does, it lets the model
answer at once: an idle replica waits for nothing. If somebody does, it keeps the caller's connection, gives the
thread back to uWSGI, which brings the next request, and the last one lets the model answer all of them and sends each
caller its answer. So no thread waits for another, and none has to be woken: with Python's one interpreter lock that
costs more than a row does. Should another process have been quicker to accept the one that was seen, a thread of its
own, which else sleeps, takes over after a moment.
"""

from __future__ import annotations

import select
import threading
import time
from typing import Any, Callable, NamedTuple, Protocol, Sequence

from .errors import Overdue, Refusal
from .joined import Joined
from .service import Work, failure
from .trial import agree

__all__ = ["Joiner", "Observer"]


class Observer(Protocol):
    """What is told of each prediction of several."""

    def joined(self, rows: int, waited_s: Sequence[float]) -> None: ...

    def split(self) -> None: ...


class Waiting(NamedTuple):
    """A request that was kept."""

    work: Work
    descriptor: int
    since: float


class Joiner:
    """Keeps requests for a moment, and answers them together.

    Parameters
    ----------
    joined : Joined
    send : callable
        Sends a kept caller its result, or what it is refused with, and lets the connection go.
    keep : callable
        Gives a descriptor of the current caller's connection that is ours.
    others_wait : callable
        Whether another caller waits to be accepted.
    observer : Observer
    delay_s : float
        How long a request is kept at most before the model is asked.
    note : callable
        Tells the endpoint's owner.
    linger_s : float
        How long a process that saw somebody waiting gets to accept him.
    """

    def __init__(
        self,
        joined: Joined,
        *,
        send: Callable[[Waiting, Any], None],
        keep: Callable[[Work], int | None],
        others_wait: Callable[[], bool],
        observer: Observer,
        delay_s: float,
        note: Callable[[str], None],
        linger_s: float = 0.001,
    ) -> None:
        self._joined = joined
        self._send = send
        self._keep = keep
        self._others_wait = others_wait
        self._observer = observer
        self._delay_s = delay_s
        self._note = note
        self._linger_s = min(linger_s, delay_s)
        self._lock = threading.Lock()
        self._waiting: list[Waiting] = []
        self._rows = 0
        self._arrived = 0
        self._at_work = 0
        self._unsafe = self._closed = False
        #: Whether the model was seen to answer a row the same alone and among others.
        self.proven = False
        self._wake = threading.Event()
        threading.Thread(target=self._linger, name="domino-joiner", daemon=True).start()

    def take(self, work: Work) -> bool:
        """Keep a request, and maybe answer it with all that are kept; whether its caller is (or will be) answered.

        False: nobody else is there, or requests of this model must not be joined; the model is to answer it alone.
        """
        if self._unsafe or self._closed or (not self._waiting and not self._at_work and not self._others_wait()):
            return False
        descriptor = self._keep(work)
        if descriptor is None:
            return False
        with self._lock:
            self._waiting.append(Waiting(work, descriptor, time.monotonic()))
            self._rows += work.input.rows
            self._arrived += 1
            batch = self._due()
        if batch:
            self._work_on(batch)
        elif not self._wake.is_set():
            self._wake.set()
        return True

    def finish(self) -> None:
        """Answer all that are kept and keep nobody any more: the process is about to end."""
        self._closed = True
        while True:
            with self._lock:
                batch = self._take_all()
                if not batch and not self._at_work:
                    return
            if batch:
                self._work_on(batch)
            else:
                time.sleep(0.001)

    def _due(self) -> list[Waiting]:
        """Return what is to be answered now; nothing where more may come, or who is at work will see to it."""
        if not self._waiting:
            return []
        if self._rows < self._joined.max_rows:
            late = time.monotonic() - self._waiting[0].since >= self._delay_s
            if self._at_work or (not late and self._others_wait()):
                return []
        return self._take_all()

    def _take_all(self) -> list[Waiting]:
        batch, self._waiting, self._rows = self._waiting, [], 0
        self._at_work += bool(batch)
        return batch

    def _work_on(self, batch: list[Waiting]) -> None:
        while batch:
            try:
                self._answer(batch)
            finally:
                with self._lock:
                    self._at_work -= 1
                    batch = self._due()
        if self._waiting:
            self._wake.set()

    def _linger(self) -> None:
        """Answer those whose turn no other thread noticed."""
        seen = 0
        while True:
            self._wake.wait()
            time.sleep(self._linger_s)
            with self._lock:
                if not self._waiting:
                    self._wake.clear()
                    continue
                late = time.monotonic() - self._waiting[0].since >= self._delay_s
                if self._at_work or (seen != self._arrived and not late):
                    seen = self._arrived
                    continue
                batch = self._take_all()
            self._work_on(batch)

    # ---- one batch ---------------------------------------------------------------------------------------------------

    def _answer(self, batch: Sequence[Waiting]) -> None:
        groups: dict[Any, list[list[Waiting]]] = {}
        rows: dict[Any, int] = {}
        for waiting in self._wanted(batch):
            made = waiting.work.input
            chunks = groups.setdefault(made.key, [])
            rows[made.key] = rows.get(made.key, 0) + made.rows
            if not chunks or rows[made.key] > self._joined.max_rows:
                chunks.append([])
                rows[made.key] = made.rows
            chunks[-1].append(waiting)
        for chunks in groups.values():
            for chunk in chunks:
                try:
                    self._check(chunk)
                except BaseException as error:  # ours: nobody may be left without an answer
                    for waiting in chunk:
                        self._send(waiting, error)

    def _wanted(self, batch: Sequence[Waiting]) -> list[Waiting]:
        """Leave out those whose callers have gone, or whose time is over."""
        poll = select.poll()
        for waiting in batch:
            poll.register(waiting.descriptor, 0)  # only what is always told: errors, and the other side's end
        gone = {descriptor for descriptor, _ in poll.poll(0)}
        now = time.monotonic()
        left = []
        for waiting in batch:
            if waiting.descriptor in gone or now >= waiting.work.ticket.deadline:
                self._send(waiting, Overdue("the time limit was over before the model could begin"))
            else:
                left.append(waiting)
        return left

    def _check(self, chunk: list[Waiting]) -> None:
        refused = self._joined.check([waiting.work.input for waiting in chunk])
        for waiting in chunk:
            if waiting.work.input in refused:
                self._send(waiting, refused[waiting.work.input])
        good = [waiting for waiting in chunk if waiting.work.input not in refused]
        if good:
            now = time.monotonic()
            self._observer.joined(
                sum(waiting.work.input.rows for waiting in good), [now - waiting.since for waiting in good]
            )
            self._ask(good, self._joined.merge([waiting.work.input for waiting in good]))

    def _ask(self, chunk: Sequence[Waiting], table: Any) -> None:
        """Let the model answer; where it fails ask for each half, so that only the guilty fail."""
        if len(chunk) == 1 or self._unsafe:
            for waiting in chunk:
                self._ask_alone(waiting)
            return
        inputs = [waiting.work.input for waiting in chunk]
        try:
            answer = self._joined.answer(table, inputs[0].params)
            parts = self._joined.parts(answer, inputs)
            if parts is not None and not self.proven:
                self.proven = agree(parts[0], inputs[0].run())
                if not self.proven:
                    self.stop_joining("it answers a row otherwise among others than alone")
                    self._ask(chunk, table)
                    return
        except BaseException:
            self._observer.split()
            self._ask_halves(chunk, table)
            return
        if parts is None:
            self.stop_joining("its answer to joined rows has not one entry for each row")
            self._ask(chunk, table)
            return
        for waiting, part in zip(chunk, parts):
            self._send(waiting, part)

    def _ask_halves(self, chunk: Sequence[Waiting], table: Any) -> None:
        middle = len(chunk) // 2
        rows = sum(waiting.work.input.rows for waiting in chunk[:middle])
        halves = (chunk[:middle], table.part(0, rows)), (chunk[middle:], table.part(rows, table.rows))
        for half, part in halves:
            if time.monotonic() >= max(waiting.work.ticket.deadline for waiting in half):
                for waiting in half:
                    self._send(waiting, Overdue("the time limit was over; the work is stopped"))
            else:
                self._ask(half, part)

    def _ask_alone(self, waiting: Waiting) -> None:
        outcome: Any
        try:
            outcome = waiting.work.input.run()
        except Refusal as refusal:
            outcome = refusal
        except BaseException:
            outcome = failure()
        self._send(waiting, outcome)

    def stop_joining(self, why: str) -> None:
        """Let the model answer each request alone from now on."""
        self._unsafe = True
        self._note(f"requests are not joined, though max_batch_size is set: {why}")
