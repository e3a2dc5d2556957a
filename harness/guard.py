"""uWSGI's master as a child of the replica's first process, which so outlives a model that takes it down.

The first process is the one that data planes know: it passes their signals on, and ends when its child has ended. In a
container it is also the one that the kernel spares, and the one that has to bury the dead.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
import traceback
from typing import Callable

__all__ = ["children", "end_orphans", "exit_code", "start", "tend", "words_of"]

_PASSED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
_AWAITED = _PASSED | {signal.SIGCHLD}
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def start(become: Callable[[], None]) -> int:
    """Start a child that becomes something else, and never outlives this process; return its process id.

    From here on this process's signals wait for `tend`, and whoever loses its parent below it becomes its child.
    """
    _control(_PR_SET_CHILD_SUBREAPER, 1)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        _control(_PR_SET_PDEATHSIG, signal.SIGKILL.value)
        if os.getppid() != parent:  # it was quicker
            os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's raises, in the middle of a model's loading
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        become()
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def tend(child: int, *, look: Callable[[], None], told: Callable[[int], None], every_s: float) -> int:
    """Wait until the child has ended; return its status, as `os.waitpid` has it.

    Parameters
    ----------
    child : int
    look : callable
        Called again and again meanwhile.
    told : callable
        Called with each signal that was meant for the child.
    every_s : float
        Pause between two looks.
    """
    while True:
        got = signal.sigtimedwait(_AWAITED, every_s)
        if got is not None and got.si_signo in _PASSED:
            told(got.si_signo)
        status = _bury(child)
        if status is not None:
            return status
        look()


def exit_code(status: int) -> int:
    """Return the code with which a shell would tell of this end."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def words_of(status: int) -> str:
    if os.WIFEXITED(status):
        return f"ended with code {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    try:
        return f"was killed by {signal.Signals(number).name}"
    except ValueError:
        return f"was killed by signal {number}"


def _bury(child: int) -> int | None:
    """Take leave of all that have ended, orphans included; return the child's status where it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status


def children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def end_orphans(patience_s: float = 0.0) -> None:
    """Kill what is left of a child that has ended, processes that a model started included.

    Parameters
    ----------
    patience_s : float
        How long they may take to end by themselves.
    """
    now = time.monotonic()
    kill_at, give_up_at = now + patience_s, now + patience_s + 2
    while children(os.getpid()) and now < give_up_at:
        for pid in children(os.getpid()) if now >= kill_at else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
        _bury(0)
        now = time.monotonic()


def _control(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
