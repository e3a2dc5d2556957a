"""Starts seldon-core's microservice: ``python -I .../_mlflow_domino_harness/seldon.py``, in an environment of its own.

uWSGI's master of the replica runs this beside its workers, again whenever it ends. Like the harness itself it becomes
uWSGI: one process with a thread for each message that the replica can hold, since all that they do is wait.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
if __package__ in (None, ""):
    sys.path.insert(0, os.path.dirname(_PACKAGE))
    __package__ = os.path.basename(_PACKAGE)
    __import__(__package__)

from .config import Config, read_config  # noqa: E402 - importable from here on
from .launch import SIGNALS, backlog, become_uwsgi, listen_on  # noqa: E402
from .log import Redaction  # noqa: E402
from .opening import ending_the_start  # noqa: E402
from .sharing import THREAD_COUNTS  # noqa: E402
from .slots import Microservice, Slots  # noqa: E402
from .status import Status  # noqa: E402

__all__ = ["main"]

_MOST_THREADS = 512
#: Threads that answer for health and metrics while all others wait for the model.
_SPARE = 8
#: What of the replica's environment it needs; not the model's variables, nor what uWSGI told its own processes.
_KEPT = re.compile(
    "PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|DOMINO_.*|PREDICTIVE_UNIT_.*|PREDICTOR_.*|SELDON_.*|MODEL_METADATA"
    "|INCLUDE_METRICS_IN_CLIENT_RESPONSE|" + "|".join(THREAD_COUNTS)
)


def main() -> None:
    """Become the microservice of the replica that the environment describes."""
    config = read_config(os.environ)
    slots = Slots(os.path.join(config.replica_dir, "slots"))
    status = Status(config.replica_dir, int(os.environ["DOMINO_MASTER"]), Redaction(config.secrets))
    with ending_the_start(slots, status):
        threads = min(config.capacity + _SPARE, _MOST_THREADS)
        clean = _environment(capacity=threads - _SPARE)
        if clean != dict(os.environ):
            # Again, since whoever may look at this process sees the environment that it was started with.
            os.execve(sys.executable, [sys.executable, "-I", os.path.abspath(__file__)], clean)
        sockets = _listen(config, slots, status)
        become_uwsgi(_arguments(config, threads, [s.fileno() for s in sockets]))


def _environment(*, capacity: int) -> dict[str, str]:
    """Return what of the environment it needs."""
    variables = os.environ.get("DOMINO_VARIABLES", "").split(",")
    kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name) and name not in variables}
    # numpy would start a thread for each core, and nobody calculates here.
    return {
        **kept, **dict.fromkeys(THREAD_COUNTS, "1"), "DOMINO_SELDON_CAPACITY": str(capacity),
        "INCLUDE_METRICS_IN_CLIENT_RESPONSE": "false",
    }  # fmt: skip


def _listen(config: Config, slots: Slots, status: Status) -> list[socket.socket]:
    """Bind; for Seldon Core, whose scraper brings no token, on a port for metrics too."""
    waiting = backlog(config)
    with status.locked():
        slots.microservice = Microservice.MISSING  # or somebody might rename the socket before it is listened on
        sockets = [listen_on(config.seldon_starting_socket if config.socket else "", config.seldon_port, waiting)]
    if config.open_to_all and not config.socket:
        with contextlib.suppress(OSError):
            sockets.append(listen_on("", config.metrics_port, waiting))
    return sockets


def _arguments(config: Config, threads: int, descriptors: list[int]) -> list[str]:
    """Return uWSGI's options: names, numbers and nothing that anybody else wrote."""
    options: dict[str, object] = {
        "master": True,
        "lazy-apps": True,
        "need-app": True,
        "single-interpreter": True,
        "enable-threads": True,
        "processes": 1,
        "threads": threads,
        "listen": backlog(config),
        "module": f"{__package__}.microservice:start()",
        "buffer-size": 65535,
        "socket-timeout": 60,
        "no-orphans": True,
        "disable-logging": True,
        "ignore-sigpipe": True,
        "ignore-write-errors": True,
        "disable-write-exception": True,
        "worker-reload-mercy": max(1, int(config.drain_s)),
    }
    arguments = ["--" + name if value is True else f"--{name}={value}" for name, value in options.items()]
    arguments += [f"--http-socket=fd://{descriptor}" for descriptor in descriptors]
    return arguments + [f"--hook-master-start=unix_signal:{number} {function}" for number, function in SIGNALS]


if __name__ == "__main__":
    main()
