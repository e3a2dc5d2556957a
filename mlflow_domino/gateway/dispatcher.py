"""Takes predictions from the queue, and has replicas run them: ``python -m mlflow_domino.gateway.dispatcher INVENTORY``.

A process of its own, that may end at any moment: everything it knows is in the queue and in the inventory. Its leases
outlive it by half a minute at most; the next dispatcher of a database in a file, of which there is only one, takes
them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow_domino.errors import GatewayFailed, Unavailable
from mlflow_domino.gateway.clerk import Clerk, in_thread
from mlflow_domino.gateway.deliveries import Deliveries
from mlflow_domino.gateway.inventory import Inventory, InventoryFile, QueueAccess
from mlflow_domino.gateway.lane import Lane
from mlflow_domino.gateway.wake import FINISH, LOOK, acknowledge, hang_bell
from mlflow_domino.queue.database import Database
from mlflow_domino.queue.prediction import Held, now_ms
from mlflow_domino.queue.turn import LEASE_S, Turn

__all__ = ["Dispatcher", "main"]

_LOOK_S = 0.5
_POLL_S = 0.5
_SWEEP_S = 1.0
#: Between two bites of what is removed: others write, too.
_BITE_S = 0.1
_BEAT_S = LEASE_S / 6
_PROGRESS_S = 1.0
_END_S = 5.0
_LAST_ANSWERS_S = 1.0
_KEEP_MS = 172_800_000
_LISTENED = 4096


class Dispatcher:
    """Dispatches predictions of all endpoints of one gateway.

    Parameters
    ----------
    inventory : InventoryFile
        Tells where the queue and the replicas are.
    say : callable
        Gets a line of its log.
    clock : callable
        Gives milliseconds since the epoch.
    """

    def __init__(
        self, inventory: InventoryFile, *, say: Callable[[str], object], clock: Callable[[], int] = now_ms
    ) -> None:
        self._inventory = inventory
        self._say = say
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._leaving: list[Lane] = []
        self._strays: set[Held] = set()
        self._seen: dict[tuple[Held, int], float] = {}
        self._alone = False
        self._keep_ms: dict[str, int] = {}
        self._private_webhooks = False
        self._followed: Inventory | None = None
        self._finishing = False
        self._url = ""

    async def run(self) -> None:
        """Dispatch until SIGTERM, SIGINT or the supervisor's end."""
        ended = asyncio.Event()
        self._end_with(asyncio.get_running_loop(), ended)
        tasks = [asyncio.ensure_future(self._dispatch()), asyncio.ensure_future(ended.wait())]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in done:
            task.result()

    async def _dispatch(self) -> None:
        access = await self._access()
        self._url = Path(access.database).read_text("utf-8").strip()
        database = await in_thread(lambda: self._open(self._url))
        self._alone = await in_thread(database.claim)
        clerk = Clerk(database, uuid.uuid4().hex, self._clock, self._say)
        bell = hang_bell(access.wake)
        asyncio.get_running_loop().add_reader(
            bell.fileno(), lambda: self._listen(bell, lambda: self._look(clerk, access))
        )
        self._say("dispatching predictions")
        works = [
            self._follow(clerk, access), self._poll(clerk), self._beat(clerk), self._sweep(clerk), self._ask_progress(),
            Deliveries(clerk, private=lambda: self._private_webhooks).run(),
        ]  # fmt: skip
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            asyncio.get_running_loop().remove_reader(bell.fileno())
            bell.close()
            await self._leave(clerk)
            database.close()

    # ---- its life ------------------------------------------------------------------------------------------------

    def _end_with(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
        """End with a signal, with the Emperor, or with anything that goes wrong: the supervisor starts another one."""
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(FINISH, self._finish, ended)
        emperor = os.environ.get("UWSGI_EMPEROR_FD", "")
        if emperor.isdecimal():
            loop.add_reader(int(emperor), ended.set)

        def failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            loop.default_exception_handler(context)
            ended.set()

        loop.set_exception_handler(failed)

    def _finish(self, ended: asyncio.Event) -> None:
        """Take nothing more from the queue: what runs is finished, and then this dispatcher ends."""
        if self._followed is None:
            ended.set()
        self._finishing = True
        self._say("finishing what runs")
        for lane in self._lanes.values():
            lane.end()
        self._leaving += self._lanes.values()
        self._lanes = {}

    async def _access(self) -> QueueAccess:
        while True:
            with contextlib.suppress(GatewayFailed):
                access = self._inventory().queue
                if access is not None:
                    return access
            await asyncio.sleep(_LOOK_S)

    def _open(self, url: str) -> Database:
        said = False
        while True:
            try:
                return Database(url)
            except Unavailable as error:
                if not said:
                    self._say(str(error))
                said = True
                time.sleep(_POLL_S)

    async def _leave(self, clerk: Clerk) -> None:
        """Give back what was not sent, and store what is known or comes in a moment."""
        lanes = [*self._lanes.values(), *self._leaving]
        for lane in lanes:
            lane.end()
        late = time.monotonic() + _LAST_ANSWERS_S
        while not all(lane.idle for lane in lanes) and time.monotonic() < late:
            await asyncio.sleep(0.01)
        await in_thread(lambda: clerk.end(_END_S))

    # ---- what it does all the time -------------------------------------------------------------------------------

    async def _follow(self, clerk: Clerk, access: QueueAccess) -> None:
        """Follow the inventory: endpoints come and go, and so do their replicas."""
        while self._look(clerk, access):
            await asyncio.sleep(_LOOK_S)

    def _look(self, clerk: Clerk, access: QueueAccess) -> bool:
        """Follow the inventory as it is now; false where this dispatcher is of no use any more."""
        with contextlib.suppress(GatewayFailed):
            found = self._inventory()
            if found.queue is not None and self._moved(found.queue, access):
                self._say("the queue is another one now")
                return False
            if found is not self._followed:
                self._followed = found
                if not self._finishing:
                    self._arrange(found, clerk)
                acknowledge(access.wake, found.generation)
        return not self._finishing or not all(lane.idle for lane in self._leaving)

    def _moved(self, access: QueueAccess, before: QueueAccess) -> bool:
        """Whether the queue is elsewhere now, or its user has another password."""
        if access.database != before.database:
            return True
        try:
            return Path(access.database).read_text("utf-8").strip() != self._url
        except OSError:
            return False  # being replaced

    def _arrange(self, inventory: Inventory, clerk: Clerk) -> None:
        max_result = inventory.queue.max_result if inventory.queue else 0
        self._private_webhooks = bool(inventory.queue and inventory.queue.private_webhooks)
        wanted = {endpoint.endpoint_id: endpoint for endpoint in inventory.asynchronous}
        self._keep_ms = {endpoint_id: int(endpoint.keep_s * 1000) for endpoint_id, endpoint in wanted.items()}
        for endpoint_id in set(self._lanes) - set(wanted):
            lane = self._lanes.pop(endpoint_id)
            lane.forget()
            self._leaving.append(lane)
        for endpoint_id, endpoint in wanted.items():
            if endpoint_id in self._lanes:
                self._lanes[endpoint_id].follow(endpoint, max_result)
            else:
                self._lanes[endpoint_id] = Lane(endpoint, max_result, clerk, self._clock)
        self._leaving = [lane for lane in self._leaving if not lane.idle]

    def _listen(self, bell: socket.socket, look: Callable[[], object]) -> None:
        """Hear what the application says was submitted or cancelled, and that the inventory has changed."""
        heard: dict[str, None] = {}
        with contextlib.suppress(BlockingIOError):
            while len(heard) < _LISTENED:
                heard[bell.recv(64).decode("ascii", "replace")] = None
        for word in heard:
            if word.startswith("cancel "):
                self._cancel(word.removeprefix("cancel "))
            elif word == LOOK:
                look()
            elif word in self._lanes:
                self._lanes[word].ring()

    async def _poll(self, clerk: Clerk) -> None:
        """Look for what nobody told: others submit to the same database and cancel there, and datagrams get lost."""
        while True:
            await asyncio.sleep(_POLL_S)
            for lane in self._lanes.values():
                lane.ring()
            if not self._alone and self._held():
                for prediction_id in await clerk.do(lambda turn: turn.unwanted()):
                    self._cancel(prediction_id)

    async def _ask_progress(self) -> None:
        """Learn how far those predictions are that take long."""
        while True:
            await asyncio.sleep(_PROGRESS_S)
            for lane in (*self._lanes.values(), *self._leaving):
                lane.ask_progress()

    async def _beat(self, clerk: Clerk) -> None:
        """Keep the leases, learn which are gone and which are to be stopped, take over those of dispatchers that died."""
        while True:
            before = self._held()
            mine = await clerk.do(lambda turn: turn.renew())
            now = self._held()
            for prediction_id, held in before.items():
                if now.get(prediction_id) == held and held not in mine:
                    for lane in (*self._lanes.values(), *self._leaving):
                        lane.drop(prediction_id)
            for held, cancelled in mine.items():
                if cancelled:
                    self._cancel(held.id)
            strays = {held for held in mine if now.get(held.id) != held}
            await self._take_over(clerk, strays & self._strays)
            self._strays = strays
            await self._take_over(clerk, self._abandoned(await clerk.do(lambda turn: turn.others())))
            await asyncio.sleep(_BEAT_S)

    def _abandoned(self, others: dict[Held, int]) -> set[Held]:
        """Return the leases of others that show no life for as long as a lease lasts, by the clock of this process."""
        now = time.monotonic()
        self._seen = {mark: self._seen.get(mark, now) for mark in others.items()}
        patience_s = 0.0 if self._alone else LEASE_S
        return {held for (held, _), since in self._seen.items() if now - since >= patience_s}

    async def _take_over(self, clerk: Clerk, leases: set[Held]) -> None:
        for held in leases:
            endpoint_id = await clerk.do(functools.partial(self._abandon, held))
            if endpoint_id in self._lanes:
                self._lanes[endpoint_id].ring()

    def _abandon(self, held: Held, turn: Turn) -> str | None:
        return turn.abandon(held, self._keep_ms, _KEEP_MS)

    async def _sweep(self, clerk: Clerk) -> None:
        """Queue again what has paused, fail what has waited too long, remove what was kept for long enough."""
        while True:
            woken, removed = await clerk.do(self._tidy)
            for endpoint_id in woken:
                if endpoint_id in self._lanes:
                    self._lanes[endpoint_id].ring()
            await asyncio.sleep(_BITE_S if removed else _SWEEP_S)

    def _tidy(self, turn: Turn) -> tuple[set[str], int]:
        woken = turn.wake()
        turn.expire(self._keep_ms, _KEEP_MS)
        return woken, turn.remove()

    def _held(self) -> dict[str, Held]:
        return {one: held for lane in (*self._lanes.values(), *self._leaving) for one, held in lane.held().items()}

    def _cancel(self, prediction_id: str) -> None:
        for lane in (*self._lanes.values(), *self._leaving):
            lane.cancel(prediction_id)


def main(inventory: str) -> None:
    """Dispatch until told to end."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    asyncio.run(Dispatcher(InventoryFile(Path(inventory)), say=say).run())


if __name__ == "__main__":
    main(*sys.argv[1:])
