"""What every process of a replica knows of the others: one small file, mapped into all of them.

Format of ``$DOMINO_REPLICA_DIR/slots`` (little-endian; made new at each start, so an old map is never written by a new
process). A reader outside (the data plane, when it drains) needs four lines and no HTTP::

    data = open(path, "rb").read()
    workers, threads = struct.unpack_from("<II", data, 8)
    starts = range(64 + 64 * workers, 64 + 64 * workers * (1 + threads), 64)
    in_flight = sum(struct.unpack_from("<d", data, at)[0] != 0 for at in starts)

====================  =================================================================================================
header, 64 bytes      ``8s`` magic ``DOMINO1\\0``, ``I`` workers, ``I`` threads, ``d`` started, ``I`` phase,
                      ``I`` microservice, ``d`` loaded
worker, 64 bytes each ``I`` pid, ``I`` state, ``I`` starts, ``I`` retiring, ``d`` heartbeat, ``d`` load_time_s,
                      ``d`` retired, ``Q`` requests (of this process)
slot, 64 bytes each   ``d`` started (0: free), ``d`` deadline, ``16s`` request id, ``I`` overdue, ``16s`` id of the request
                      that is to be stopped
note, 256 bytes each  of asynchronous replicas only, one for each slot: ``16s`` request id, ``d`` fraction (NaN: not told),
                      ``H`` bytes of text, the text in UTF-8
====================  =================================================================================================

Times are of ``time.monotonic()``, the same clock in all processes of a machine.
"""

from __future__ import annotations

import enum
import math
import mmap
import os
import struct
import time
from typing import Iterator, NamedTuple

__all__ = ["Microservice", "Note", "Phase", "Retiring", "SlotRecord", "Slots", "State", "WorkerRecord"]

_MAGIC = b"DOMINO1\0"
_BLOCK = 64
_DOUBLE = struct.Struct("<d")
_WORD = struct.Struct("<I")
_WORKER = struct.Struct("<IIIIdddQ")
_SLOT = struct.Struct("<dd16sI16s")
_STARTS = struct.Struct("<d56x")
_NOTE = 256
_NOTE_HEAD = struct.Struct("<16sdH")


class Phase(enum.IntEnum):
    """What the replica as a whole is doing."""

    STARTING = 0
    READY = 1
    FAILED = 2
    #: It was told to end, and finishes what it is at.
    ENDING = 3


class Microservice(enum.IntEnum):
    """What seldon-core's microservice is doing, which an asynchronous replica has."""

    NONE = 0
    MISSING = 1
    READY = 2


class State(enum.IntEnum):
    """What one worker is doing."""

    ABSENT = 0
    LOADING = 1
    WARMING = 2
    READY = 3


class Retiring(enum.IntEnum):
    """Whether a worker is to take no more requests."""

    NO = 0
    #: The signal that ends it was sent.
    TOLD = 1
    #: It is to send that signal to itself in its next request. Sent from outside it might come between the moment
    #: at which uWSGI accepts a connection and the one at which it counts a request, and end both.
    ASKED = 2


class WorkerRecord(NamedTuple):
    """One worker's block, in the order of the format."""

    pid: int
    state: int
    starts: int
    retiring: int
    heartbeat: float
    load_time_s: float
    retired: float
    requests: int


class SlotRecord(NamedTuple):
    """One request in flight."""

    worker: int
    index: int
    started: float
    deadline: float
    request_id: str
    overdue: int
    #: Whether somebody wants it to be stopped.
    unwanted: bool


class Note(NamedTuple):
    """What the model says of how far it is with a request.

    Attributes
    ----------
    fraction : float or None
        From 0 to 1; None where it says only words.
    text : str
    """

    request_id: str
    fraction: float | None
    text: str


class Slots:
    """The mapped file. Workers are numbered from 1, as uWSGI does; the slots of a worker from 0.

    Parameters
    ----------
    path : str
        The file, which `create` made.
    """

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        magic, self.workers, self.threads = struct.unpack_from("<8sII", self._map, 0)
        if magic != _MAGIC:
            raise ValueError(f"{path} is no file of slots")

    @staticmethod
    def create(
        path: str, *, workers: int, threads: int, started: float | None = None, microservice: bool = False
    ) -> None:
        """Make the file, of a start that began at `started` or just now; `microservice`: whether one is waited for."""
        started = time.monotonic() if started is None else started
        size = _BLOCK * (1 + workers * (1 + threads)) + (_NOTE * workers * threads if microservice else 0)
        beside = path + ".new"
        with open(beside, "wb") as file:
            header = struct.pack("<8sIIdII", _MAGIC, workers, threads, started, Phase.STARTING, microservice)
            file.write(header.ljust(size, b"\0"))
        os.replace(beside, path)

    def close(self) -> None:
        self._map.close()

    @property
    def loaded(self) -> float:
        """When the model was loaded for all workers; 0 where it is not, or each loads its own."""
        return _DOUBLE.unpack_from(self._map, 32)[0]

    @loaded.setter
    def loaded(self, when: float) -> None:
        _DOUBLE.pack_into(self._map, 32, when)

    @property
    def started(self) -> float:
        return _DOUBLE.unpack_from(self._map, 16)[0]

    @property
    def phase(self) -> Phase:
        return Phase(_WORD.unpack_from(self._map, 24)[0])

    @phase.setter
    def phase(self, phase: Phase) -> None:
        _WORD.pack_into(self._map, 24, phase)

    @property
    def microservice(self) -> Microservice:
        return Microservice(_WORD.unpack_from(self._map, 28)[0])

    @microservice.setter
    def microservice(self, microservice: Microservice) -> None:
        _WORD.pack_into(self._map, 28, microservice)

    def worker(self, worker: int) -> WorkerRecord:
        return WorkerRecord(*_WORKER.unpack_from(self._map, _BLOCK * worker))

    def enter(self, worker: int, pid: int) -> None:
        """Take over a worker's block at the start of its process: its last one's requests are gone with it."""
        before = self.worker(worker)
        self.clear(worker)
        record = (pid, State.LOADING, before.starts + 1, 0, time.monotonic(), 0.0, 0.0, 0)
        _WORKER.pack_into(self._map, _BLOCK * worker, *record)

    def clear(self, worker: int) -> None:
        """Forget the requests of a process that has ended."""
        for index in range(self.threads):
            at = self._slot(worker, index)
            self._map[at : at + _BLOCK] = bytes(_BLOCK)

    def set_state(self, worker: int, state: State) -> None:
        _WORD.pack_into(self._map, _BLOCK * worker + 4, state)

    def set_load_time(self, worker: int, seconds: float) -> None:
        _DOUBLE.pack_into(self._map, _BLOCK * worker + 24, seconds)

    def beat(self, worker: int) -> None:
        _DOUBLE.pack_into(self._map, _BLOCK * worker + 16, time.monotonic())

    def retire(self, worker: int, how: Retiring) -> None:
        """Note that this worker is to take no more requests."""
        _DOUBLE.pack_into(self._map, _BLOCK * worker + 32, time.monotonic())
        _WORD.pack_into(self._map, _BLOCK * worker + 12, how)

    def is_asked_to_retire(self, worker: int) -> bool:
        return _WORD.unpack_from(self._map, _BLOCK * worker + 12)[0] == Retiring.ASKED

    def count_request(self, worker: int, total: int) -> None:
        struct.pack_into("<Q", self._map, _BLOCK * worker + 40, total)

    def take(self, worker: int, index: int, request_id: str, deadline: float) -> None:
        at = self._slot(worker, index)
        _SLOT.pack_into(self._map, at, 0.0, deadline, request_id.encode("ascii"), 0, b"")
        _DOUBLE.pack_into(self._map, at, time.monotonic())  # last: whoever sees a start sees its deadline too

    def free(self, worker: int, index: int) -> None:
        _DOUBLE.pack_into(self._map, self._slot(worker, index), 0.0)

    def mark_overdue(self, worker: int, index: int) -> None:
        _WORD.pack_into(self._map, self._slot(worker, index) + 32, 1)

    def stop(self, request_id: str) -> bool:
        """Have the watchdog stop a request as if its time were over; whether it is in flight."""
        for worker in range(1, self.workers + 1):
            for slot in self.in_flight(worker):
                if slot.request_id == request_id:
                    # By its id: the slot may be another request's by now, which is none of ours.
                    struct.pack_into("<16s", self._map, self._slot(worker, slot.index) + 36, request_id.encode("ascii"))
                    return True
        return False

    def note(self, worker: int, index: int, note: Note) -> None:
        """Write down how far the model is with the request in a slot; a long text is cut."""
        text = note.text.encode("utf-8", "replace")[: _NOTE - _NOTE_HEAD.size].decode("utf-8", "ignore").encode()
        fraction = math.nan if note.fraction is None else note.fraction
        head = _NOTE_HEAD.pack(note.request_id.encode("ascii"), fraction, len(text))
        at = self._note(worker, index)
        self._map[at : at + _NOTE] = (head + text).ljust(_NOTE, b"\0")

    def notes(self) -> list[Note]:
        """Return how far the model is with each request in flight of which it has said so."""
        return [
            note
            for worker in range(1, self.workers + 1)
            for slot in self.in_flight(worker)
            for note in [self._read_note(worker, slot.index)]
            if note is not None and note.request_id == slot.request_id
        ]

    def _read_note(self, worker: int, index: int) -> Note | None:
        at = self._note(worker, index)
        block = self._map[at : at + _NOTE]
        if block != self._map[at : at + _NOTE]:  # being written: there will be another look
            return None
        name, fraction, length = _NOTE_HEAD.unpack_from(block)
        text = block[_NOTE_HEAD.size : _NOTE_HEAD.size + length].decode("utf-8", "replace")
        return Note(name.rstrip(b"\0").decode("ascii", "replace"), None if math.isnan(fraction) else fraction, text)

    def in_flight(self, worker: int) -> list[SlotRecord]:
        """Return the requests that a worker is at."""
        return list(self._in_flight(worker))

    def count_in_flight(self) -> int:
        return sum(len(self.in_flight(worker)) for worker in range(1, self.workers + 1))

    def _in_flight(self, worker: int) -> Iterator[SlotRecord]:
        begin = self._slot(worker, 0)
        starts = _STARTS.iter_unpack(self._map[begin : begin + _BLOCK * self.threads])
        for index, (started,) in enumerate(starts):
            if started:
                begun, deadline, name, overdue, unwanted = _SLOT.unpack_from(self._map, self._slot(worker, index))
                request_id = name.rstrip(b"\0").decode()
                yield SlotRecord(worker, index, begun, deadline, request_id, overdue, unwanted == name)

    def _slot(self, worker: int, index: int) -> int:
        return _BLOCK * (1 + self.workers + (worker - 1) * self.threads + index)

    def _note(self, worker: int, index: int) -> int:
        return self._slot(self.workers, self.threads) + _NOTE * ((worker - 1) * self.threads + index)
