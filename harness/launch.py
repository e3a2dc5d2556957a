"""Starts a replica: ``python -I .../_mlflow_domino_harness/launch.py``, in the model's environment.

Builds uWSGI's arguments out of names and numbers that are ours alone, since uWSGI expands ``%x``, ``$(X)`` and
``@(exec://...)`` in any of them; even the socket goes by descriptor. A child of this process becomes uWSGI's master,
and this process its watchdog.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import sys
import time
from typing import Mapping, Sequence

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
if __package__ in (None, ""):
    sys.path.insert(0, os.path.dirname(_PACKAGE))
    __package__ = os.path.basename(_PACKAGE)
    __import__(__package__)

from .config import Config, read_config  # noqa: E402 - importable from here on
from .guard import end_orphans, exit_code, start, words_of  # noqa: E402
from .log import Redaction  # noqa: E402
from .sharing import THREAD_COUNTS, note_apart, share, why_apart  # noqa: E402
from .slots import Phase, Slots  # noqa: E402
from .status import Status  # noqa: E402
from .watchdog import log_tail, watch  # noqa: E402

__all__ = ["SIGNALS", "backlog", "become_uwsgi", "listen_on", "main", "uwsgi_arguments"]

#: Set where the model turned out to be none to share: when the start began, and the descriptors that are listened on.
_AGAIN = "DOMINO_START_AGAIN"

#: How long processes that are no children of uWSGI's master may take to end after it.
_PATIENCE_S = 1.0
#: Where control groups are mounted.
_GROUPS = "/sys/fs/cgroup"

#: What signals do in uWSGI's master, by the names of its own functions.
SIGNALS = (
    (signal.SIGTERM.value, "gracefully_kill_them_all"),  # else it drops what is in flight
    # A handler that does nothing, so that the end of a worker wakes the master, which else looks once a second.
    (signal.SIGCHLD.value, "uwsgi_now"),
)

#: uWSGI closes each descriptor that there could be before it starts a daemon; some engines' limit is a thousand million.
_MOST_FILES = 1 << 20

#: For the shell: uWSGI expands other forms than these, and the shell does not look into what they stand for.
_MICROSERVICE = 'exec "$DOMINO_SELDON_PYTHON" -I "$DOMINO_SELDON_LAUNCHER"'


class _Unfit(ValueError):
    """What the environment says is nothing that a replica can start with."""


def main() -> None:
    """Be the replica that the environment describes, until it ends."""
    given = dict(os.environ)
    config = read_config(given)
    again = os.environ.pop(_AGAIN, "")
    status = Status(config.replica_dir, config.pid, Redaction(config.secrets))
    if not again:
        status.begin()
    try:
        _check_tokens(config)
        _check_microservice(config)
        listening = _inherited(again) if again else _listen(config)
        started = _prepare(config, started=float(again.partition(" ")[0]) if again else None)
        os.environ.update(thread_counts(share(config, cores()), os.environ))
        os.environ["DOMINO_PYTHON"] = sys.executable
        os.environ["DOMINO_MASTER"] = str(config.pid)
        shared = not again and _shares(config, status)
        arguments = uwsgi_arguments(config, [one.fileno() for one in listening], shared=shared)
        master = start(lambda: become_uwsgi(arguments))
    except _Unfit as error:
        status.fail(f"the replica cannot start: {error}")
        sys.exit(f"The replica cannot start: {error}.")
    except BaseException as error:
        status.fail(f"the replica cannot start: {type(error).__name__}: {error}")
        raise
    ended, watchdog = watch(config, master, listening)
    end_orphans(_PATIENCE_S if watchdog.told else 0)
    if watchdog.phase is Phase.STARTING and not watchdog.told:
        if shared:
            note_apart(status, f"the process that loaded it for all {words_of(ended)}")
            status.again()
            given[_AGAIN] = " ".join(map(str, (started, *(one.fileno() for one in listening))))
            os.execve(sys.executable, [sys.executable, "-I", os.path.abspath(__file__)], given)
        status.fail(f"uWSGI {words_of(ended)} before the model was loaded", log_tail())
    os._exit(exit_code(ended))


def _shares(config: Config, status: Status) -> bool:
    why = why_apart(config, os.environ)
    if why:
        note_apart(status, why)
    return why is None


def _listen(config: Config) -> list[socket.socket]:
    """Return what uWSGI is to listen on: a Unix socket, a port, or in a container both."""
    found = []
    if config.socket:
        # Under the name that says that it is not ready yet. Who may call is decided outside of a container, by its folder.
        found.append(listen_on(config.starting_socket, 0, backlog(config), mode=0o666 if config.port else 0o600))
    if config.port or not config.socket:
        found.append(listen_on("", config.port or 8080, backlog(config)))
    return found


def _inherited(again: str) -> list[socket.socket]:
    """Return the sockets that this very process listened on before it began again."""
    found = [socket.socket(fileno=int(descriptor)) for descriptor in again.split(" ")[1:]]
    for listening in found:
        listening.set_inheritable(True)
    return found


def _check_tokens(config: Config) -> None:
    """Refuse to serve what nobody, or by mistake everybody, could call."""
    if config.tokens is None and not config.token_digests and not config.open_to_all:
        raise _Unfit(
            "no token is set: DOMINO_TOKEN_SHA256 wants the SHA-256 of a token (several between commas), or DOMINO_AUTH "
            "the word none, which lets everybody call"
        )
    for digest in config.token_digests:
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise _Unfit("DOMINO_TOKEN_SHA256 wants the SHA-256 of a token, 64 hexadecimal digits, not a token")


def _check_microservice(config: Config) -> None:
    if not config.is_async:
        return
    if not os.access(config.seldon_python, os.X_OK):
        raise _Unfit(
            f"an asynchronous replica needs seldon-core, and there is no Python at {config.seldon_python or 'seldon_python'}"
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not 0 <= soft <= _MOST_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MOST_FILES, hard))
    os.environ["DOMINO_SELDON_PYTHON"] = config.seldon_python
    os.environ["DOMINO_SELDON_LAUNCHER"] = os.path.join(_PACKAGE, "seldon.py")


def _prepare(config: Config, *, started: float | None) -> float:
    """Empty what an earlier start left behind, and make the files that the processes share; return when it began."""
    folder = config.replica_dir
    for name in os.listdir(folder):
        if name.startswith("tokens."):
            os.unlink(os.path.join(folder, name))
    metrics = os.path.join(folder, "metrics")
    shutil.rmtree(metrics, ignore_errors=True)
    os.makedirs(metrics)
    # prometheus-client before 0.10 reads the one, later ones the other.
    os.environ["prometheus_multiproc_dir"] = os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics  # noqa: SIM112
    started = time.monotonic() if started is None else started
    Slots.create(
        os.path.join(folder, "slots"), workers=config.workers, threads=config.slots, started=started,
        microservice=config.is_async,
    )  # fmt: skip
    os.chdir(config.working_dir)
    return started


def listen_on(path: str, port: int, waiting: int, *, mode: int = 0o600) -> socket.socket:
    """Return a listening socket, which the programs that this process becomes inherit.

    Parameters
    ----------
    path : str
        Of a Unix socket; empty for a port.
    waiting : int
        How many connections may wait.
    mode : int
        Of a Unix socket.
    """
    if path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(path)
        os.chmod(path, mode)
    else:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("0.0.0.0", port))  # noqa: S104 - in a container, for its neighbours
    listening.listen(waiting)
    listening.set_inheritable(True)
    return listening


def backlog(config: Config) -> int:
    """Return how many connections may wait: the queue and what is being served, as far as the kernel lets us."""
    wanted = config.workers * config.threads + config.max_queue
    try:
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
            return min(int(file.read()), wanted)
    except (OSError, ValueError):
        return min(128, wanted)


def uwsgi_arguments(config: Config, descriptors: Sequence[int], *, shared: bool) -> list[str]:
    """Return uWSGI's options: names, numbers and nothing that anybody else wrote.

    Parameters
    ----------
    config : Config
        This replica's settings.
    descriptors : sequence of int
        The listening sockets.
    shared : bool
        Whether the model is loaded once, in the master.
    """
    package = __package__
    options: dict[str, object] = {
        "master": True,
        "single-interpreter": True,
        "enable-threads": True,
        "processes": config.workers,
        "listen": backlog(config),
        "module": f"{package}.wsgi",
        "buffer-size": 65535,
        "socket-timeout": 60,
        "no-orphans": True,
        "disable-logging": True,
        "ignore-sigpipe": True,  # callers that hang up are no news
        "ignore-write-errors": True,
        "disable-write-exception": True,
        "skip-atexit-teardown": True,  # the interpreter's end waits for threads that may never end
        "worker-reload-mercy": max(1, int(config.drain_s)),
        "forkbomb-delay": 0,  # a pause of the master would lose the signal to end; workers pause by themselves
    }
    # Workers that Python is to know as forked, or as processes that load the model themselves.
    options["py-call-uwsgi-fork-hooks" if shared else "lazy-apps"] = True
    if config.threads > 1:
        options["threads"] = config.threads
    arguments = [f"--http-socket=fd://{descriptor}" for descriptor in descriptors]
    arguments += ["--" + name if value is True else f"--{name}={value}" for name, value in options.items()]
    if config.is_async:
        arguments.append(f"--attach-daemon={_MICROSERVICE}")
    return arguments + [f"--hook-master-start=unix_signal:{number} {function}" for number, function in SIGNALS]


def thread_counts(number: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that give each worker so many native threads, but for those that somebody has set."""
    return {name: str(number) for name in THREAD_COUNTS if not environ.get(name)}


def cores() -> int:
    """Return the cores that this process may use; a container's quota counts, not the machine's number."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, min(usable, int(quota))) if quota else usable


def _quota() -> float:
    """Return the cores that a control group of either version grants; 0 where it sets no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        words: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            for name in names:
                with open(os.path.join(_GROUPS, name), encoding="ascii") as file:
                    words += file.read().split()
            quota, period = words
            return 0.0 if quota in ("max", "-1") else int(quota) / int(period)
    return 0.0


def become_uwsgi(arguments: list[str]) -> None:
    binary = _uwsgi_binary()
    if binary is not None:
        os.environ["PYTHONPATH"] = os.path.dirname(_PACKAGE)  # wsgi.py takes it out again
        os.execv(binary, [binary, *arguments])
    import pyuwsgi

    pyuwsgi.run(arguments)


def _uwsgi_binary() -> str | None:
    """Return the compiled uWSGI beside this interpreter; pyuwsgi puts a script of the same name there."""
    candidate = os.path.join(os.path.dirname(sys.executable), "uwsgi")
    try:
        with open(candidate, "rb") as file:
            return candidate if file.read(4) == b"\x7fELF" else None
    except OSError:
        return None


if __name__ == "__main__":
    main()
