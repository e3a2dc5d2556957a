"""Writes down what a dispatcher does: one thread, and as many changes in a transaction as there are."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from mlflow_domino.errors import Unavailable
from mlflow_domino.queue.database import Database
from mlflow_domino.queue.turn import Turn

__all__ = ["Clerk", "in_thread"]

T = TypeVar("T")
Change = Callable[[Turn], T]
Then = Callable[[Any, Exception | None], object]

_JOINED = 128
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 2.0


@dataclass(frozen=True)
class _Entry:
    change: Change[Any]
    then: Then
    durable: bool
    written: Callable[[], object]


class Clerk:
    """Has changes written, in their order, whatever happens to the database meanwhile.

    Parameters
    ----------
    database : Database
    owner : str
        The dispatcher's name.
    clock : callable
        Gives milliseconds since the epoch.
    say : callable
        Gets a line when the database fails, and when it is back.
    """

    def __init__(self, database: Database, owner: str, clock: Callable[[], int], say: Callable[[str], object]) -> None:
        self._database = database
        self._owner = owner
        self._clock = clock
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._changes: list[_Entry] = []
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="clerk", daemon=True)
        self._thread.start()

    def do(self, change: Change[T]) -> asyncio.Future[T]:
        """Return a future of what a change returns, set when it is on disk.

        A change may be done again when its transaction failed: it must not count on being the first.
        """
        future: asyncio.Future[T] = self._loop.create_future()

        def told(result: T, error: Exception | None) -> None:
            if not future.cancelled():
                future.set_result(result) if error is None else future.set_exception(error)

        self.put(change, told)
        return future

    def put(
        self, change: Change[Any], then: Then, *, durable: bool = True, written: Callable[[], object] = lambda: None
    ) -> None:
        """Have a change written; `then` gets what it returns, or its error, when it is on disk.

        Parameters
        ----------
        durable : bool
            Whether it must outlive the machine. A lease need not: whoever holds it does not outlive it, either.
        written : callable
            Called when it is on disk, at once, in the clerk's own thread.
        """
        with self._changed:
            self._changes.append(_Entry(change, then, durable, written))
            self._changed.notify()

    def end(self, timeout_s: float) -> None:
        """Write what is still to be written, as far as there is time."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._changes or self._ended)
                if not self._changes:
                    return
                taken = self._changes[:_JOINED]
                del self._changes[: len(taken)]
            done = self._write(taken)
            with contextlib.suppress(RuntimeError):  # as below
                self._loop.call_soon_threadsafe(_tell, done)

    def _write(self, taken: list[_Entry]) -> list[tuple[Then, Any, Exception | None]]:
        try:
            return [(entry.then, result, None) for entry, result in zip(taken, self._persist(taken), strict=True)]
        except Exception as error:
            if len(taken) == 1:
                return [(taken[0].then, None, error)]
            return [one for each in taken for one in self._write([each])]  # whose fault it is

    def _persist(self, taken: list[_Entry]) -> list[Any]:
        changes = [entry.change for entry in taken]
        durable = any(entry.durable for entry in taken)
        pause_s = 0.0
        while True:
            try:
                results = self._database.write(lambda connection: self._turn(connection, changes), durable=durable)
            except Unavailable as error:
                if not pause_s:
                    self._say(str(error))
                pause_s = min(max(_FIRST_PAUSE_S, pause_s * 2), _LAST_PAUSE_S)
                with self._changed:
                    if self._ended:
                        raise
                    self._changed.wait_for(lambda: self._ended, pause_s)
            else:
                if pause_s:
                    self._say("the queue of predictions can be used again")
                for entry in taken:
                    entry.written()
                return results

    def _turn(self, connection: sa.Connection, changes: list[Change[Any]]) -> list[Any]:
        turn = Turn(connection, self._owner, self._clock())
        results = [change(turn) for change in changes]
        turn.end()
        return results


async def in_thread(work: Callable[[], T]) -> T:
    """Return what `work` returns, from a thread for which the end of this process does not wait."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def told(result: T, error: Exception | None) -> None:
        if not future.cancelled():
            future.set_result(result) if error is None else future.set_exception(error)

    def run() -> None:
        done: list[tuple[Then, Any, Exception | None]]
        try:
            done = [(told, work(), None)]
        except Exception as error:
            done = [(told, None, error)]
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody wants to know
            loop.call_soon_threadsafe(_tell, done)

    threading.Thread(target=run, daemon=True).start()
    return await future


def _tell(done: list[tuple[Then, Any, Exception | None]]) -> None:
    for then, result, error in done:
        then(result, error)
