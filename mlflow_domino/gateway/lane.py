"""One endpoint's way through a dispatcher: its leases, its replicas, and what runs on them."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_domino.gateway import seldon
from mlflow_domino.gateway.clerk import Clerk
from mlflow_domino.gateway.exchange import Broken, Unreached
from mlflow_domino.gateway.inventory import AsyncEndpoint
from mlflow_domino.gateway.seldon import Answered
from mlflow_domino.gateway.wake import say_ended
from mlflow_domino.queue.prediction import Attempt, Held, Lease, Outcome, Progress, State
from mlflow_domino.queue.turn import Turn

__all__ = ["Lane"]

Change = Callable[[Turn], object]

#: What is leased beyond what runs, so that quick models need not wait for the disk: work for so long, and no more.
_AHEAD_S = 0.02
_AHEAD = 32
_FIRST_PAUSE_S = 0.05
_LAST_PAUSE_S = 2.0
#: The replica itself says that the time is over; then the connection is given up.
_GRACE_S = 15.0
#: Whoever asks how far a prediction is has waited for longer than this.
_SLOW_S = 1.0
#: What a replica says that has not begun.
_NOT_BEGUN = ("BUSY", "NOT_READY")
#: What it says that is not the model's own error, though it may have begun.
_AGAIN = ("LOST", "TIMEOUT")


@dataclass
class _Replica:
    """A replica of the version that predictions are sent to.

    Attributes
    ----------
    refusals : int
        How often in a row it could not take what was sent.
    asked : bool
        Whether it is being asked how far its predictions are.
    """

    address: str
    flying: int = 0
    refusals: int = 0
    closed: bool = False
    asked: bool = False


@dataclass
class _Run:
    """A prediction at a replica."""

    lease: Lease
    replica: _Replica
    version: int
    begun_ms: int
    begun: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    progress: Progress | None = None


class Lane:
    """Sends an endpoint's predictions to its replicas, as many at once as these run.

    Parameters
    ----------
    endpoint : AsyncEndpoint
    max_result : int
        Bytes.
    clerk : Clerk
    clock : callable
        Gives milliseconds since the epoch.
    """

    def __init__(self, endpoint: AsyncEndpoint, max_result: int, clerk: Clerk, clock: Callable[[], int]) -> None:
        self._endpoint = endpoint
        self._max_result = max_result
        self._clerk = clerk
        self._clock = clock
        self._replicas: dict[str, _Replica] = {}
        self._ready: collections.deque[Lease] = collections.deque()
        self._running: dict[str, _Run] = {}
        self._storing: dict[str, Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking = self._dry = self._rung = False
        self._mean_s = 1.0
        self._secret = ""
        self.follow(endpoint, max_result)

    # ---- what the dispatcher tells it ----------------------------------------------------------------------------

    def follow(self, endpoint: AsyncEndpoint, max_result: int) -> None:
        """Send to the replicas that there are now; what runs on others goes on there."""
        if endpoint.version != self._endpoint.version:
            self._give_back()
            asyncio.get_running_loop().call_later(endpoint.drain_s, self._cut_off)
        self._endpoint, self._max_result = endpoint, max_result
        self._replicas = {a: self._replicas.get(a) or _Replica(a) for a in endpoint.addresses}
        self.ring()

    def ring(self) -> None:
        """Look whether something waits."""
        self._dry, self._rung = False, True
        self._pump()

    def cancel(self, prediction_id: str) -> None:
        """Stop a prediction, or note that it cannot be stopped."""
        run = self._running.get(prediction_id)
        if run is not None and not run.cancelled:
            run.cancelled = True
            self._begin(self._stop(run))
            return
        for lease in self._ready:
            if lease.id == prediction_id:
                self._ready.remove(lease)
                self._store(lease, _finish(lease, _CANCELLED_BEFORE, self._keep_ms))
                return

    def ask_progress(self) -> None:
        """Learn how far those are that take long."""
        begun = time.monotonic() - _SLOW_S
        replicas = {run.replica.address: run.replica for run in self._running.values() if run.begun < begun}
        for replica in replicas.values():
            if not replica.asked:
                replica.asked = True
                self._begin(self._learn(replica))

    def drop(self, prediction_id: str) -> None:
        """Forget a lease that another dispatcher has now; an answer that still comes is not stored."""
        self._ready = collections.deque(lease for lease in self._ready if lease.id != prediction_id)
        self._running.pop(prediction_id, None)
        self._storing.pop(prediction_id, None)

    def end(self) -> None:
        """Send nothing more."""
        self._endpoint = dataclasses.replace(self._endpoint, version=None, addresses=())
        self._replicas = {}
        self._give_back()

    def forget(self) -> None:
        """Send nothing more, and stop what runs when it has had its time: there is no such endpoint any more."""
        self.end()
        asyncio.get_running_loop().call_later(self._endpoint.drain_s, self._cut_off)

    def _give_back(self) -> None:
        """Return to the queue what was leased and not sent."""
        while self._ready:
            lease = self._ready.popleft()
            self._store(lease, _release(lease))

    def held(self) -> dict[str, Held]:
        """Return all its leases, by their predictions."""
        return {
            **{lease.id: lease.held for lease in self._ready},
            **{run.lease.id: run.lease.held for run in self._running.values()},
            **self._storing,
        }

    @property
    def idle(self) -> bool:
        return not (self._asking or self._ready or self._running or self._storing)

    # ---- sending -------------------------------------------------------------------------------------------------

    @property
    def _keep_ms(self) -> int:
        return int(self._endpoint.keep_s * 1000)

    def _pump(self) -> None:
        """Fill the replicas, and lease what they will run next."""
        if self._endpoint.version is None:
            return
        while self._ready and (replica := self._free()) is not None:
            lease = self._ready.popleft()
            run = _Run(lease, replica, self._endpoint.version, self._clock())
            self._running[lease.id] = run
            replica.flying += 1
            self._send(run)
        wanted = self._slots() - len(self._ready)
        if wanted > 0 and not self._asking and not self._dry:
            self._asking, self._rung = True, False
            self._lease(wanted, self._endpoint.version)

    def _free(self) -> _Replica | None:
        limit = self._endpoint.limit
        free = [r for r in self._replicas.values() if r.flying < limit and not r.closed]
        return min(free, key=lambda replica: replica.flying, default=None)

    def _slots(self) -> int:
        """Return how many leases can be used soon."""
        limit = self._endpoint.limit
        opened = [replica for replica in self._replicas.values() if not replica.closed]
        free = sum(max(0, limit - replica.flying) for replica in opened)
        return free + self._ahead() if opened else 0

    def _ahead(self) -> int:
        return min(_AHEAD, int(len(self._replicas) * self._endpoint.limit * _AHEAD_S / self._mean_s))

    def _lease(self, wanted: int, version: int) -> None:
        capacity = len(self._replicas) * self._endpoint.limit + self._ahead() + self._elsewhere()
        endpoint_id, keep_ms = self._endpoint.endpoint_id, self._keep_ms

        def take(turn: Turn) -> list[Lease]:
            return turn.take(endpoint_id, wanted, capacity=capacity, version=version, keep_ms=keep_ms)

        def leased(taken: list[Lease], error: Exception | None) -> None:
            self._asking = False
            if error is not None:
                raise error
            self._ready.extend(taken)
            if version != self._endpoint.version:
                self._give_back()
            self._dry = len(taken) < wanted and not self._rung
            self._pump()

        self._clerk.put(take, leased, durable=False)

    def _elsewhere(self) -> int:
        """Return how many run on replicas that get no more."""
        return sum(self._replicas.get(run.replica.address) is not run.replica for run in self._running.values())

    def _send(self, run: _Run) -> None:
        lease, timeout_s = run.lease, self._endpoint.timeout_s
        body = seldon.message(lease.request, lease.id, lease.fence, int(timeout_s * 1000))

        def then(answered: Answered | Unreached | Broken) -> None:
            run.replica.flying -= 1
            if self._running.get(lease.id) is run:  # a database that crashed may have forgotten this lease
                del self._running[lease.id]
                self._store(lease, self._judged(run, answered))
            self._pump()

        seldon.predict(run.replica.address, self._token(), body, timeout_s=timeout_s + _GRACE_S, then=then)

    def _token(self) -> str:
        """Return the gateway's own token; it stays the same for an endpoint's life."""
        if not self._secret:
            with contextlib.suppress(OSError, ValueError):  # the replica will say that it is not ready
                self._secret = Path(self._endpoint.token).read_text("ascii").strip()
        return self._secret

    # ---- answers -------------------------------------------------------------------------------------------------

    def _judged(self, run: _Run, answered: Answered | Unreached | Broken) -> Change:
        """Return what an answer means for the queue."""
        if isinstance(answered, Unreached):
            self._close(run.replica)
            return _release(run.lease)
        if isinstance(answered, Broken):
            self._close(run.replica)
            return self._lost(run, str(answered))
        if not answered.reason:
            run.replica.refusals = 0
            return self._succeeded(run, answered.result)
        return self._failed(run, answered)

    def _failed(self, run: _Run, answered: Answered) -> Change:
        if answered.reason in (*_NOT_BEGUN, "LOST"):
            self._close(run.replica)
        if answered.reason == "BUSY" and run.lease.fence > 1:
            # Perhaps with an earlier run of this very prediction, whose dispatcher is gone.
            self._begin(self._end_earlier(run))
        if run.cancelled:
            return _finish(run.lease, _CANCELLED, self._keep_ms)
        if answered.reason in _NOT_BEGUN:
            return _release(run.lease)
        if answered.reason == "MODEL_ERROR" or (answered.status < 500 and answered.reason not in _AGAIN):
            ran_ms = int((time.monotonic() - run.begun) * 1000)
            return _finish(run.lease, Outcome(State.FAILED, errors=(answered.info,)), self._keep_ms, ran_ms)
        return self._lost(run, answered.info or answered.reason)

    def _succeeded(self, run: _Run, result: str) -> Change:
        ran_s = time.monotonic() - run.begun
        self._mean_s += (ran_s - self._mean_s) * 0.2
        size = len(result.encode())
        outcome = Outcome(State.SUCCEEDED, result)
        if size > self._max_result:
            reason = (
                f"the result has {size} bytes, more than {self._max_result} (async_max_result of the data plane); "
                "return a reference to it instead"
            )
            outcome = Outcome(State.FAILED, errors=(reason,))
        return _finish(run.lease, outcome, self._keep_ms, int(ran_s * 1000))

    def _lost(self, run: _Run, reason: str) -> Change:
        """Return what to do with a run that came to no answer: try again, unless its time is over."""
        timeout_s = self._endpoint.timeout_s
        if time.monotonic() - run.begun >= timeout_s - 0.5:
            outcome = Outcome(State.FAILED, errors=(f"it ran for longer than {timeout_s:g} s (async_timeout_s)",))
            return _finish(run.lease, outcome, self._keep_ms, int(timeout_s * 1000))
        attempt = Attempt(run.lease.fence, run.version, run.begun_ms, self._clock(), reason)
        most, keep_ms = self._endpoint.max_attempts, self._keep_ms
        # A version that an update took away is no fault of the prediction's.
        strike = run.version == self._endpoint.version
        return lambda turn: turn.lose(run.lease, attempt, most=most, keep_ms=keep_ms, strike=strike)

    def _store(self, lease: Lease, change: Change) -> None:
        self._storing[lease.id] = lease.held

        def stored(_result: object, error: Exception | None) -> None:
            if self._storing.get(lease.id) == lease.held:
                del self._storing[lease.id]
            if error is not None:
                raise error

        self._clerk.put(change, stored, written=lambda: say_ended(lease.id))

    async def _learn(self, replica: _Replica) -> None:
        told = await seldon.ask_progress(replica.address, self._token())
        replica.asked = False
        for prediction_id, progress in told.items():
            run = self._running.get(prediction_id)
            if run is not None and run.replica is replica and run.progress != progress:
                run.progress = progress
                self._clerk.put(_note(run.lease, progress), _written, durable=False)

    async def _stop(self, run: _Run) -> None:
        if not await seldon.stop(run.replica.address, self._token(), run.lease.id):
            run.cancelled = False
            await self._clerk.do(lambda turn: turn.keep_running(run.lease))

    def _cut_off(self) -> None:
        """Have run again what still runs on another version than the one that there is now.

        Whoever ended that version's replicas cannot always do it at once: a pod that leaves finishes its requests.
        """
        for run in self._running.values():
            if run.version != self._endpoint.version and run.begun <= time.monotonic() - self._endpoint.drain_s:
                self._begin(self._cut(run))

    async def _cut(self, run: _Run) -> None:
        if await seldon.stop(run.replica.address, self._token(), run.lease.id):
            return  # its answer comes, and says that it was lost
        if self._running.get(run.lease.id) is run:
            del self._running[run.lease.id]
            self._store(run.lease, self._lost(run, "an update ended it"))

    async def _end_earlier(self, run: _Run) -> None:
        await seldon.stop(run.replica.address, self._token(), run.lease.id)

    # ---- replicas ------------------------------------------------------------------------------------------------

    def _close(self, replica: _Replica) -> None:
        """Send nothing to a replica until it says that it is ready."""
        replica.refusals += 1
        self._secret = ""
        if not replica.closed:
            replica.closed = True
            self._begin(self._open_when_ready(replica))

    async def _open_when_ready(self, replica: _Replica) -> None:
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(replica.refusals - 1, 8), _LAST_PAUSE_S)
        while self._replicas.get(replica.address) is replica:
            await asyncio.sleep(pause_s)
            if await seldon.ask_ready(replica.address):
                replica.closed = False
                self.ring()
                return
            pause_s = min(pause_s * 2, _LAST_PAUSE_S)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself would let go of it
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]  # the loop's handler ends the dispatcher


_CANCELLED = Outcome(State.CANCELLED, errors=("cancelled while it ran",))
_CANCELLED_BEFORE = Outcome(State.CANCELLED, errors=("cancelled before it ran",))


def _finish(lease: Lease, outcome: Outcome, keep_ms: int, ran_ms: int | None = None) -> Change:
    return lambda turn: turn.finish(lease, outcome, keep_ms=keep_ms, ran_ms=ran_ms)


def _release(lease: Lease) -> Change:
    return lambda turn: turn.release(lease)


def _note(lease: Lease, progress: Progress) -> Change:
    return lambda turn: turn.note(lease, progress)


def _written(_result: object, error: Exception | None) -> None:
    if error is not None:
        raise error
