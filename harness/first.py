"""Process 1 of a container that was started without one: hands signals on, and takes leave of orphans.

The kernel gives process 1 no signal that it does not ask for, not even SIGKILL from inside: were uWSGI's master
process 1, nobody could end a replica whose model is broken.
"""

from __future__ import annotations

import os
import signal
from typing import Any

__all__ = ["step_aside"]

_HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def step_aside() -> None:
    """Return at once where this is not process 1, else in a child of it; the container ends with that child."""
    if os.getpid() != 1:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON)  # none is lost while there is nobody to hand it on to
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED_ON)
        return

    def hand_on(number: int, _frame: Any) -> None:
        os.kill(child, number)

    for number in _HANDED_ON:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED_ON)
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
