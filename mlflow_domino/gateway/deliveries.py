"""Has webhooks called, a few at once, and notes what became of each."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable

from mlflow_domino.gateway.clerk import Clerk, in_thread
from mlflow_domino.gateway.webhook import tell
from mlflow_domino.queue.prediction import Delivery

__all__ = ["Deliveries"]

_CALLERS = 8
#: Of one endpoint at once: its receiver may be slow, and others wait too.
_OF_ENDPOINT = 4
_LOOK_S = 0.5


class Deliveries:
    """Calls the webhooks that are due.

    Parameters
    ----------
    clerk : Clerk
    private : callable
        Whether they may lead to private addresses.
    """

    def __init__(self, clerk: Clerk, *, private: Callable[[], bool]) -> None:
        self._clerk = clerk
        self._private = private
        self._calling: collections.Counter[str] = collections.Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Call webhooks for as long as the dispatcher lives."""
        while True:
            for task in [task for task in self._tasks if task.done()]:
                self._tasks.discard(task)
                task.result()
            free = _CALLERS - len(self._tasks)
            busy = [endpoint for endpoint, calls in self._calling.items() if calls >= _OF_ENDPOINT]
            for delivery in await self._claim(min(free, _OF_ENDPOINT), busy) if free else ():
                self._calling[delivery.endpoint_id] += 1
                self._tasks.add(asyncio.create_task(self._call(delivery)))
            await asyncio.sleep(_LOOK_S)

    async def _claim(self, limit: int, busy: list[str]) -> list[Delivery]:
        return await self._clerk.do(lambda turn: turn.claim(limit, busy))

    async def _call(self, delivery: Delivery) -> None:
        private = self._private()
        told = await in_thread(lambda: tell(delivery, private=private))
        self._calling[delivery.endpoint_id] -= 1
        if told.reason:
            await self._clerk.do(lambda turn: turn.undelivered(delivery, told.reason, again=told.again))
        else:
            await self._clerk.do(lambda turn: turn.delivered(delivery))
