"""One load of the model for all workers: in uWSGI's master, from which they are forked and whose memory they share.

What does not survive a fork is a pool of native threads, or a descriptor that two processes would read from or write to
in turns. So a model is loaded once only where each worker has one native thread; when it is loaded, whoever has
started threads or processes or keeps something open is found out; and a worker that does not get warm after its fork
in time gives it up for all. Then each worker loads the model for itself, and the status says why.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import time
from typing import Any, Callable, Iterable, Mapping

from .config import Config
from .errors import StartFailed
from .log import Redaction, log
from .slots import Phase, Slots
from .status import Status

__all__ = [
    "THREAD_COUNTS",
    "Apart",
    "Shared",
    "allowance_s",
    "dump_before",
    "load_for_all",
    "note_apart",
    "share",
    "why_apart",
]

#: Native libraries that start as many threads as there are cores, in every worker.
THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
_NOTE = "each worker loads the model for itself: "
#: Threads that their library itself gives up before a fork and starts again after it.
_HARMLESS_THREADS = frozenset({"jemalloc_bg_thd"})
#: A warm-up after the fork gets this long at least, where there is the time to load again afterwards.
_WARM_UP_S = 10.0


def share(config: Config, cores: int) -> int:
    """Return how many native threads each worker gets: its share of the cores."""
    return 1 if config.preload == "always" else max(1, cores // config.workers)


def why_apart(config: Config, environ: Mapping[str, str]) -> str | None:
    """Say why each worker is to load the model for itself; None where it can be shared, empty where nobody asked.

    A project's script may do anything when it is run, a registered model is mostly data: so `auto` means the latter.
    """
    if config.preload == "never":
        return ""
    if config.preload == "auto" and (config.workers == 1 or config.source.kind != "Registry"):
        return ""
    several = [f"{name}={environ[name]}" for name in THREAD_COUNTS if environ.get(name, "1") != "1"]
    if several:
        why = f"{several[0]} is set, and a pool of native threads does not survive a fork"
        return why if config.preload == "always" else ""
    return None


def allowance_s(start_timeout_s: float, slots: Slots) -> float:
    """Return how long a worker may take to get warm after the fork, so that there is time to load again without it."""
    load_s = slots.loaded - slots.started
    return max(0.0, min(max(_WARM_UP_S, 2 * load_s), (start_timeout_s - load_s) / 2))


def dump_before(left_s: float) -> None:
    """Have the stack written to the log shortly before a model has had its time.

    Python's own watchdog thread needs no interpreter lock: it sees a model that hangs in C too.
    """
    faulthandler.dump_traceback_later(max(0.05, min(left_s * 0.9, left_s - 1)), file=sys.__stderr__, exit=False)


def note_apart(status: Status, why: str) -> None:
    """Tell the endpoint's owner why the model is not shared; the first reason stands."""
    if not any(note.startswith(_NOTE) for note in status.read().get("notes", ())):
        log(_NOTE + why)
        status.move("starting", note=_NOTE + why)


class Apart(Exception):
    """The model cannot be shared; the message says why."""


def load_for_all(config: Config, worker_id: Callable[[], int], run: Callable[[Any], Any]) -> Shared:
    """Load the model in uWSGI's master; return the application that each worker completes after its fork.

    Where the model cannot be loaded, or not be shared, this process ends.

    Parameters
    ----------
    config : Config
    worker_id : callable
        Number of this process's worker; 0 in the master.
    run : callable
        Makes, in a worker, the application that answers with the model.
    """
    slots = Slots(os.path.join(config.replica_dir, "slots"))
    status = Status(config.replica_dir, config.pid, Redaction(config.secrets))
    status.move("loading")
    try:
        predictor = _load(config, slots, worker_id)
    except Apart as why:
        note_apart(status, str(why))
        os._exit(1)
    except BaseException as error:
        reason, detail = getattr(error, "reason", f"{type(error).__name__}: {error}"), getattr(error, "detail", "")
        log(f"the start failed: {reason}\n{detail}".rstrip(), error=None if isinstance(error, StartFailed) else error)
        status.fail(reason, detail)
        slots.phase = Phase.FAILED
        os._exit(1)
    slots.loaded = time.monotonic()
    log("the model is loaded, for all workers")
    return Shared(lambda: run(predictor))


def _load(config: Config, slots: Slots, worker_id: Callable[[], int]) -> Any:
    import flask  # noqa: F401 - what a worker needs is shared too

    from . import app, joining  # noqa: F401
    from .metrics import keep_files_by
    from .predictor import load_predictor

    keep_files_by(worker_id)
    before = _Process.look()
    dump_before(config.start_timeout_s - (time.monotonic() - slots.started))
    predictor = load_predictor(config)
    faulthandler.cancel_dump_traceback_later()
    gc.collect()
    _Process.look().check(before, allowed=config.replica_dir)
    gc.freeze()  # a collection would write to each object, and so copy it
    return predictor


class Shared:
    """The WSGI application of all workers."""

    def __init__(self, complete: Callable[[], Any]) -> None:
        self._complete = complete
        self._answer: Any = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer: Iterable[bytes] = self._answer(environ, start_response)
        return answer

    def complete(self) -> None:
        """Become, after the fork, the worker's own; a process that cannot ends."""
        try:
            _come_to()
            self._answer = self._complete()
        except BaseException as error:
            log("the worker cannot begin", error=error)
            os._exit(1)


def _come_to() -> None:
    """Undo what the master left in this process: its signals, and the numbers that all would draw."""
    import random  # here, like the rest: the first process, which imports this module too, has no use for it

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


class _Process:
    """What this process has that a fork would break."""

    def __init__(self, threads: list[str], children: int, opened: Mapping[str, str]) -> None:
        self._threads = threads
        self._children = children
        self._opened = opened

    @classmethod
    def look(cls) -> _Process:
        tasks = os.listdir("/proc/self/task")
        threads = [_read(f"/proc/self/task/{task}/comm") for task in tasks if task != str(os.getpid())]
        children = sum(len(_read(f"/proc/self/task/{task}/children").split()) for task in tasks)
        return cls(threads, children, dict(_descriptors()))

    def check(self, before: _Process, *, allowed: str) -> None:
        """Raise `Apart` where something came since then; files in the folder `allowed` are our own."""
        threads = sorted(name for name in self._threads if name not in _HARMLESS_THREADS)
        if threads:
            raise Apart(f"loading it started {len(threads)} thread(s): {', '.join(threads[:5])}")
        if self._children > before._children:
            raise Apart("loading it started a process")
        harmless = ("/dev/null", "/dev/urandom", os.path.realpath(allowed) + "/")
        for descriptor, target in self._opened.items():
            if before._opened.get(descriptor) != target and not target.startswith(harmless):
                raise Apart(f"it keeps {target} open")


def _descriptors() -> Iterable[tuple[str, str]]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield name, os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
