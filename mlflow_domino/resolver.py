"""Runs uv, and other programs that must end with us: their output is passed on as it comes, their message is kept."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from uv import find_uv_bin

from mlflow_domino.errors import EnvironmentFailed
from mlflow_domino.indexes import Indexes
from mlflow_domino.requirements import MODEL_FOLDER, Requirement

__all__ = ["Finished", "Log", "Uv", "culprits", "run"]

Log = Callable[[str], None]

_TAIL_LINES = 40
_GRACE_S = 3.0
# The kernel ends the child when we are killed (Linux; elsewhere prctl is missing and only the lock is kept). Done by a
# program of its own, because code between fork and exec is not safe in a process with threads.
_LAUNCH = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 9)
except (AttributeError, OSError):
    pass
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Finished:
    """How a program ended; `code` is None when it overstayed its deadline."""

    code: int | None
    tail: str


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    cwd: Path,
    log: Log,
    deadline_s: float | None = None,
    keep: Sequence[int] = (),
    messages_only: bool = False,
    given: IO[bytes] | None = None,
) -> Finished:
    """Run a program to its end; when we are interrupted or killed, it ends with everything that it started.

    Parameters
    ----------
    command : sequence of str or Path
        The program's absolute path first.
    environment : mapping of str to str
        All of it; nothing of ours is added.
    cwd : Path
        Where it runs.
    log : callable
        Takes each line of its output as it comes, and redacts it.
    deadline_s : float or None
        After which it is killed.
    keep : sequence of int
        Descriptors that the program and its children inherit: a lock that is held as long as one of them lives.
    messages_only : bool
        Pass on its standard error, not its standard output.
    given : file or None
        Its standard input.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *map(str, command)]
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with subprocess.Popen(
        launcher,
        env=dict(environment), cwd=cwd, pass_fds=tuple(keep), start_new_session=True,
        stdin=given or subprocess.DEVNULL, stdout=subprocess.DEVNULL if messages_only else subprocess.PIPE,
        stderr=subprocess.PIPE if messages_only else subprocess.STDOUT, text=True, errors="replace",
    ) as process, _limited(process, deadline_s) as overdue:  # fmt: skip
        output = process.stderr if messages_only else process.stdout
        assert output is not None
        try:
            for line in output:
                tail.append(line.rstrip("\n"))
                log(line.rstrip("\n"))
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    return Finished(None if overdue.is_set() else code, "\n".join(tail))


@contextlib.contextmanager
def _limited(process: subprocess.Popen[str], deadline_s: float | None) -> Iterator[threading.Event]:
    """Kill a program that overstays its deadline; the event says so."""
    overdue = threading.Event()

    def end() -> None:
        overdue.set()
        _signal(process.pid, signal.SIGKILL)

    timer = threading.Timer(deadline_s, end) if deadline_s is not None else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield overdue
    finally:
        if timer:
            timer.cancel()


def _stop(process: subprocess.Popen[str]) -> None:
    _signal(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    _signal(process.pid, signal.SIGKILL)  # also what uv started and left behind
    process.wait()


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@dataclass(frozen=True)
class Uv:
    """uv, in a clean environment, in a folder of its own.

    Attributes
    ----------
    indexes : Indexes
    folder : Path
        Empty folder in which it runs, so that no project's configuration is found.
    log : callable
        Takes each line of output.
    model : Path or None
        The model's folder, for lines about files inside it.
    """

    indexes: Indexes
    folder: Path
    log: Log
    model: Path | None = None

    def run(self, *arguments: str | Path, keep: Sequence[int] = (), messages_only: bool = False) -> Finished:
        environment = dict(self.indexes.variables)
        environment |= {"UV_NO_PROGRESS": "1", "NO_COLOR": "1", "GIT_TERMINAL_PROMPT": "0", "PYTHONUTF8": "1"}
        if self.model:
            environment[MODEL_FOLDER] = str(self.model.resolve())
        try:
            program = find_uv_bin()
        except FileNotFoundError as error:
            raise EnvironmentFailed("uv is not installed with this package; run `pip install uv`.") from error
        finished = run(
            [program, *arguments], environment=environment, cwd=self.folder, log=self._passed_on, keep=keep,
            messages_only=messages_only,
        )  # fmt: skip
        return Finished(finished.code, self.indexes.redact(finished.tail))

    def _passed_on(self, line: str) -> None:
        self.log(self.indexes.redact(line))


def culprits(message: str, requirements: Sequence[Requirement]) -> list[Requirement]:
    """Return the lines whose package the resolver's message names, in the order of the message."""
    normal = re.sub(r"[-_.]+", "-", message).lower()
    places = {}
    for item in requirements:
        found = re.search(rf"(?<![\w-]){re.escape(item.name)}(?![\w-])", normal) if item.name else None
        if found is None and item.text.rpartition("/")[2] in message and "/" in item.text:
            found = re.search("", normal)
        if found:
            places[item] = found.start()
    return sorted(places, key=lambda item: places[item])
