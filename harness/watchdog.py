"""The replica's watchdog, in its first process, so that no model can hold it up; uWSGI's master is a child of that.

It passes signals on; it ends a replica whose model kills its process or hangs while loading; it stops requests that are
over their time limit; it replaces workers that have served enough or grown too large, one at a time; it keeps the log's
size.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from typing import Any, Callable, Sequence

from .admission import Admission
from .config import Config
from .guard import children, tend
from .log import Redaction, install, log
from .sharing import allowance_s, note_apart
from .slots import Phase, Retiring, SlotRecord, Slots, State, WorkerRecord
from .status import Status

__all__ = ["Watchdog", "watch"]

_TICK_S = 0.05
#: How long after the deadline the work is stopped: the gateway's own 504 should be out by then.
_GRACE_S = 0.2
#: How long a worker that takes no more requests gets to show those that it had already accepted.
_SETTLE_S = 0.15
#: How long a worker gets to show them whose interpreter is held by native code.
_LOCKED_S = 2.0
#: How long a worker that is asked to end gets to do so in a request of its own; nobody calls one that has had none.
_ASKED_S = 2.0
#: Looks in a row at a queue before it counts as empty: who has just left it is not seen at a worker for a moment.
_EMPTY_LOOKS = 4
_LOG_LIMIT = 16 << 20


class Watchdog:
    """Looks after one replica.

    Parameters
    ----------
    config : Config
    master : int
        Process id of uWSGI's master.
    listening : sequence of socket.socket
        What uWSGI listens on.
    """

    def __init__(self, config: Config, master: int, listening: Sequence[socket.socket] = ()) -> None:
        self._config = config
        self._admission = Admission(config, listening)
        self._leave_by: float | None = None
        self._empty_looks = 0
        self._master = master
        self._slots = Slots(os.path.join(config.replica_dir, "slots"))
        self._status = Status(config.replica_dir, config.pid, Redaction(config.secrets))
        self._recycling: int | None = None
        self._next_slow_look = 0.0
        #: Whether the replica was told to end.
        self.told = False

    @property
    def phase(self) -> Phase:
        return self._slots.phase

    def look(self) -> None:
        """Look once at everything."""
        if self._slots.phase is Phase.FAILED:
            self._end_replica()
        elif self._slots.phase is Phase.STARTING and self.told:
            self._kill_all()  # of this its workers die, and of nothing else
        elif self._slots.phase is Phase.STARTING:
            self._watch_start()
        if self._leave_by is not None:
            self._leave(self._leave_by)
        now = time.monotonic()
        for worker in range(1, self._slots.workers + 1):
            self._watch_requests(worker, now)
        if now >= self._next_slow_look:
            self._next_slow_look = now + 1.0
            self._recycle()
            truncate_log(_LOG_LIMIT)

    def pass_on(self, number: int) -> None:
        """Do as a signal says; before the replica is open, there is nothing to finish."""
        ends = number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        self.told = self.told or ends
        if ends and self._slots.phase in (Phase.STARTING, Phase.FAILED):
            self._kill_all()
            return
        if ends:
            self._slots.phase = Phase.ENDING
        if number == signal.SIGTERM and self._leave_by is None:
            self._admission.close()
            self._leave_by = time.monotonic() + self._config.drain_s
            return
        send(self._master, number)
        if number == signal.SIGINT:  # at once: those workers are killed that do not end by themselves
            time.sleep(0.25)
            self._kill_workers()

    def _leave(self, until: float) -> None:
        """Tell uWSGI to end when nobody waits to be accepted: it would drop them, and finishes what its workers are at."""
        self._empty_looks = 0 if self._admission.waiting() else self._empty_looks + 1
        if self._empty_looks == _EMPTY_LOOKS or time.monotonic() > until:
            self._leave_by = float("inf")
            send(self._master, signal.SIGTERM)

    def _watch_start(self) -> None:
        now = time.monotonic()
        for worker in range(1, self._slots.workers + 1):
            record = self._slots.worker(worker)
            if record.state in (State.LOADING, State.WARMING) and not alive(record.pid):
                self._died_in_start(record)
                return
            if self._slots.loaded and record.state != State.READY:
                forked = record.heartbeat or self._slots.loaded
                if now - forked > allowance_s(self._config.start_timeout_s, self._slots):
                    self._load_apart("a worker did not get warm in time after it was forked")
                    return
        if now - self._slots.started > self._config.start_timeout_s:
            states = {State(self._slots.worker(n).state) for n in range(1, self._slots.workers + 1)}
            doing = "loading the model" if states & {State.LOADING, State.ABSENT} else "warming the model up"
            if states == {State.READY}:  # it is not the workers that are waited for
                doing = "starting seldon-core's microservice"
            self._fail(f"{doing} took longer than {self._config.start_timeout_s:g} s (setting start_timeout_s)")

    def _died_in_start(self, record: WorkerRecord) -> None:
        why = death_notice(record.pid, State(record.state))
        if self._slots.loaded:
            self._load_apart(f"of a worker that was forked, {why}")
        else:
            self._fail(why)

    def _load_apart(self, why: str) -> None:
        note_apart(self._status, why)
        self._kill_all()

    def _fail(self, reason: str) -> None:
        if self._status.fail(reason, log_tail()):
            log("the start failed: " + reason)
        self._slots.phase = Phase.FAILED
        self._end_replica()

    def _end_replica(self) -> None:
        """End the master and everything below it; nobody serves a broken model."""
        with contextlib.suppress(OSError):
            os.unlink(self._config.starting_socket)
        self._kill_all()

    def _kill_all(self) -> None:
        below = children(self._master)
        # Asked to end, it might be starting another worker just then, and wait for that one.
        send(self._master, signal.SIGKILL)
        for pid in below:
            send(pid, signal.SIGKILL)

    def _kill_workers(self) -> None:
        for pid in children(self._master):
            send(pid, signal.SIGKILL)

    def _watch_requests(self, worker: int, now: float) -> None:
        record = self._slots.worker(worker)
        flying = self._slots.in_flight(worker)
        if not flying or not record.pid:
            return
        if not alive(record.pid):
            self._slots.clear(worker)
            return
        overdue = [slot for slot in flying if slot.unwanted or now > slot.deadline + _GRACE_S]
        for slot in overdue:
            if not slot.overdue:
                self._slots.mark_overdue(worker, slot.index)
        if not overdue:
            return
        if not record.retiring:
            why = "cancelled" if overdue[0].unwanted else "over the time limit"
            log(f"{why}: worker {worker} is replaced", request_id=overdue[0].request_id)
            self._retire(worker, record.pid)
            return
        if self._may_kill(overdue, flying, record):
            log(f"worker {worker} is killed with {len(overdue)} overdue request(s)")
            send(record.pid, signal.SIGKILL)

    def _may_kill(self, overdue: list[SlotRecord], flying: list[SlotRecord], record: WorkerRecord) -> bool:
        """Whether nobody is left to wait for, or they had their time."""
        waited_s = time.monotonic() - record.retired
        if waited_s < _SETTLE_S:
            return False
        # A request that a thread has accepted is seen once the thread gets the interpreter's lock. Where the worker's
        # own ticker has had it since, that one has; a loop that never lets go of it is not waited for.
        if self._slots.threads > 1 and record.heartbeat < record.retired + _SETTLE_S and waited_s < _LOCKED_S:
            return False
        return len(overdue) == len(flying) or waited_s > self._config.drain_s

    def _retire(self, worker: int, pid: int) -> None:
        """Tell a worker to finish what it is at and take nothing new; uWSGI starts another one when it has ended."""
        self._slots.retire(worker, Retiring.TOLD)
        send(pid, signal.SIGHUP)

    def _recycle(self) -> None:
        if self._recycling is not None:
            record = self._slots.worker(self._recycling)
            if record.retiring == Retiring.ASKED and time.monotonic() - record.retired > _ASKED_S:
                self._retire(self._recycling, record.pid)
            if record.retiring or record.state != State.READY or not alive(record.pid):
                return  # never two at once
            self._recycling = None
        if self._slots.phase is not Phase.READY:
            return
        by_requests = sorted(range(1, self._slots.workers + 1), key=lambda n: -self._slots.worker(n).requests)
        for worker in by_requests:
            why = self._reason_to_recycle(worker)
            if why:
                log(f"worker {worker} is recycled: {why}")
                self._recycling = worker
                if self._config.threads == 1:
                    self._slots.retire(worker, Retiring.ASKED)
                else:
                    self._retire(worker, self._slots.worker(worker).pid)
                return

    def _reason_to_recycle(self, worker: int) -> str:
        record, config = self._slots.worker(worker), self._config
        if record.state != State.READY or record.retiring:
            return ""
        if 0 < config.worker_max_requests <= record.requests:
            return f"{record.requests} requests served"
        if config.worker_max_memory:
            resident = resident_bytes(record.pid)
            if resident > config.worker_max_memory:
                return f"{resident >> 20} MiB of memory in use"
        return ""


def watch(config: Config, master: int, listening: Sequence[socket.socket] = ()) -> tuple[int, Watchdog]:
    """Look after the replica until uWSGI's master has ended; return the master's status, and what was seen."""
    install(Redaction(config.secrets))
    watchdog = Watchdog(config, master, listening)
    looked = _answer_probes(config)
    rest_until = 0.0

    def look() -> None:
        nonlocal rest_until
        if time.monotonic() < rest_until:
            return
        try:
            watchdog.look()
            looked()
        except Exception as error:
            log("the watchdog stumbled", error=error)
            rest_until = time.monotonic() + 1

    return tend(master, look=look, told=watchdog.pass_on, every_s=_TICK_S), watchdog


def _answer_probes(config: Config) -> Callable[[], None]:
    """Answer on the port for probes, where there is one; return what it is told with that the watchdog is at work."""
    if not config.probe_port:
        return lambda: None
    from .probe import Health, serve  # here: other data planes need not spend its memory
    from .readiness import Readiness

    slots = Slots(os.path.join(config.replica_dir, "slots"))
    health = Health(slots, config.start_timeout_s)
    serve(config.probe_port, health, Readiness(slots, config.replica_dir))
    return health.looked


def send(pid: int, number: int) -> None:
    if pid > 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def death_notice(pid: int, state: State) -> str:
    """Say how a worker ended while it was loading; uWSGI, its parent, writes that to the log."""
    when = "loading" if state is State.LOADING else "its warm-up"
    deadline = time.monotonic() + 1.0
    pattern = re.compile(rf"\(pid: {pid}\) died(?:, killed by signal (\d+))?")
    while time.monotonic() < deadline:
        found = pattern.search(log_tail())
        if found is None:
            time.sleep(0.02)
        elif found.group(1) is None:
            return f"the model ended the process during {when}, by os._exit or in native code"
        else:
            number = int(found.group(1))
            return "the process was killed during {} by {}{}".format(when, _signal_name(number), _HINTS.get(number, ""))
    return f"the process ended during {when}"


_HINTS: dict[int, str] = {
    signal.SIGKILL: " (often the kernel's answer to memory running out)",
    signal.SIGSEGV: " (a crash in native code)",
}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def log_path() -> str:
    """Return the file that standard error goes to; empty where it is none."""
    try:
        path = os.readlink("/proc/self/fd/2")
    except OSError:
        return ""
    return path if os.path.isfile(path) else ""


def log_tail(size: int = 8192) -> str:
    path = log_path()
    if not path:
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read().decode("utf-8", "replace")


def truncate_log(limit: int) -> None:
    """Move what a log holds to ``.1`` where it is longer than that; its writers append, so they go on at its start."""
    path = log_path()
    try:
        if not path or os.path.getsize(path) <= limit:
            return
        with open(path, "rb") as old, open(path + ".1", "wb") as kept:
            os.chmod(path + ".1", 0o600)
            _copy(old, kept)
        os.truncate(path, 0)
    except OSError as error:
        log(f"the log could not be shortened: {error}")


def _copy(source: Any, target: Any) -> None:
    while True:
        chunk = source.read(1 << 20)
        if not chunk:
            return
        target.write(chunk)
