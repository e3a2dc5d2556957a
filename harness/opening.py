"""The moment at which a replica takes requests: once all of its workers, and its microservice, are loaded and warm."""

from __future__ import annotations

import contextlib
import os
from typing import Iterator

from .config import Config
from .log import log
from .slots import Microservice, Phase, Slots, State
from .status import Status

__all__ = ["ending_the_start", "open_microservice", "open_when_all_are_ready"]


def open_when_all_are_ready(config: Config, slots: Slots, status: Status) -> None:
    """Show the sockets under the names by which they are called, unless somebody is still loading."""
    with status.locked():
        workers = [slots.worker(number) for number in range(1, slots.workers + 1)]
        if slots.phase is not Phase.STARTING or any(worker.state != State.READY for worker in workers):
            return
        if slots.microservice is Microservice.MISSING:
            return
        if config.socket:
            os.rename(config.starting_socket, config.socket)
            if config.is_async:
                os.rename(config.seldon_starting_socket, config.seldon_socket)
        slots.phase = Phase.READY
    load_time_s = max(worker.load_time_s for worker in workers)
    status.move("ready", load_time_s=round(load_time_s, 3))
    log(f"ready, {slots.workers} worker(s) loaded and warm")


@contextlib.contextmanager
def ending_the_start(slots: Slots, status: Status, what: str = "seldon-core's microservice") -> Iterator[None]:
    """End the replica's start with an exception of what it needs; one that is open already it leaves alone."""
    try:
        yield
    except BaseException as error:
        reason = f"{what} cannot start: {type(error).__name__}: {error}"
        if slots.phase is Phase.STARTING and status.fail(reason):
            slots.phase = Phase.FAILED  # the watchdog ends the rest
        raise


def open_microservice(config: Config, slots: Slots, status: Status) -> None:
    """Say that the microservice is loaded; where it comes back into a replica that is open, show its socket at once."""
    with status.locked():
        slots.microservice = Microservice.READY
        if slots.phase is Phase.READY and config.socket:
            with contextlib.suppress(FileNotFoundError):  # a process that replaces another on the same socket
                os.rename(config.seldon_starting_socket, config.seldon_socket)
    open_when_all_are_ready(config, slots, status)
