"""The program of a gateway's pod: ``python -m mlflow_domino.gateway.pod``.

It is process 1, and keeps others alive: Envoy, the gateway's own application, the watcher that has Envoy follow the
cluster's objects, and where there is a queue of predictions a dispatcher. Each is started again where it ends; Envoy
and dispatcher find their files as they were, so that they go on as before, even while the API server is away.

Told to end (SIGTERM), it goes on serving until the cluster has forgotten the pod's address, while Envoy asks callers
to connect anew; then until nothing is in flight, of predictions neither. How long that may take is the pod's grace
period.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_domino.errors import DominoError, GatewayFailed
from mlflow_domino.gateway.inventory import read_inventory
from mlflow_domino.gateway.routes import RouteTable
from mlflow_domino.gateway.surroundings import Surroundings
from mlflow_domino.gateway.wake import FINISH

__all__ = ["Pod", "main"]

_LOOK_S = 0.2
#: A program that ends sooner than this after its start is not started again at once.
_BRIEF_S = 1.0
#: Time in which every node has heard that the pod gets no requests any more.
_FORGOTTEN_S = 5.0
#: Time for callers with open connections to use them once more, and be told to make another.
_UNUSED_S = 15.0
_END_S = 5.0
_LOG_LIMIT = 1 << 20
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


@dataclass
class Program:
    """One of the processes that are kept alive.

    Attributes
    ----------
    wanted : callable
        Whether it is to be started where it does not run.
    """

    name: str
    argv: Sequence[str]
    wanted: Callable[[], bool] = lambda: True
    process: subprocess.Popen[bytes] | None = None
    started: float = field(default=-_BRIEF_S)

    def keep(self) -> None:
        """Start it, where it does not run and is not one that has just ended again."""
        if self.process is not None:
            code = self.process.poll()
            if code is None:
                return
            _say(f"{self.name} ended with {code}")
            self.process = None
        if time.monotonic() - self.started >= _BRIEF_S and self.wanted():
            self.started = time.monotonic()
            # The signals that wait here are its own again: a mask outlives exec.
            self.process = subprocess.Popen(self.argv, preexec_fn=_unmask)

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)

    def end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_S)
                return
            self.process.kill()
            self.process.wait()


class Pod:
    """Keeps the programs of a gateway alive, and ends them without cutting a request off."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._envoy = surroundings.envoy
        self._log = LogTail(surroundings.folder / "envoy.log")
        python, inventory = (sys.executable, "-m"), str(surroundings.inventory)
        serve = (*python, "mlflow_domino.gateway.serve", str(surroundings.application), inventory)
        dispatch = (*python, "mlflow_domino.gateway.dispatcher", inventory)
        self._dispatcher = Program("the dispatcher", dispatch, wanted=self._dispatches)
        self._programs = (
            Program("Envoy", self._envoy.argv()),
            Program("the application", serve),
            self._dispatcher,
            Program("the watcher", (*python, "mlflow_domino.gateway.watcher")),
        )

    def run(self) -> None:
        """Serve until told to end, and nothing is in flight."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._prepare()
        leaving: float | None = None
        while leaving is None or not self._idle(time.monotonic() - leaving):
            for program in self._programs:
                program.keep()
            self._reap()
            self._log.forward()
            told = signal.sigtimedwait(_SIGNALS, _LOOK_S)
            if told is not None and told.si_signo != signal.SIGCHLD and leaving is None:
                _say("leaving: the requests in flight are finished first")
                leaving = time.monotonic()
                self._surroundings.leaving.touch()
                self._dispatcher.signal(FINISH)
        for program in reversed(self._programs):
            program.end()
        self._log.forward()

    def _prepare(self) -> None:
        """Write what the others start from: what an earlier container of this pod had, or nothing until the watcher has some."""
        surroundings = self._surroundings
        surroundings.leaving.unlink(missing_ok=True)
        try:
            table = self._envoy.published()
        except (ValueError, KeyError, TypeError):  # cut short by a full disk
            table = RouteTable()
        self._envoy.prepare(table, chain=surroundings.chain, key=surroundings.key)
        try:
            read_inventory(surroundings.inventory)
        except GatewayFailed:
            surroundings.tell(())

    def _reap(self) -> None:
        """Take leave of processes whose parents have ended: they are process 1's."""
        own = {program.process.pid for program in self._programs if program.process is not None}
        with contextlib.suppress(ChildProcessError):
            while (info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if info.si_pid in own:  # `keep` wants to know how it ended
                    return
                os.waitpid(info.si_pid, os.WNOHANG)

    def _dispatches(self) -> bool:
        return self._surroundings.queue is not None and not self._surroundings.leaving.exists()

    def _idle(self, since_s: float) -> bool:
        """Have Envoy send callers elsewhere; true when nobody is left, or none but those who keep a connection unused."""
        if self._dispatcher.process is not None:  # it ends by itself when nothing of its own runs any more
            with contextlib.suppress(GatewayFailed):
                self._envoy.dismiss()
            return False
        try:
            self._envoy.dismiss()
            requests, connections = self._envoy.load()
        except GatewayFailed:  # being started again; where it cannot be, nothing is in flight
            return since_s > _UNUSED_S
        return since_s > _FORGOTTEN_S and requests == 0 and (connections == 0 or since_s > _UNUSED_S)


class LogTail:
    """Passes on what Envoy writes to its file, which stays small."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def forward(self) -> None:
        with contextlib.suppress(FileNotFoundError), open(self._path, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(min(self._offset, size))
            sys.stderr.buffer.write(file.read())
            sys.stderr.flush()
            self._offset = file.tell()
            if self._offset > _LOG_LIMIT:
                file.truncate(0)  # Envoy appends
                self._offset = 0


def _unmask() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _say(text: str) -> None:
    print(f"gateway: {text}", file=sys.stderr, flush=True)


def main() -> None:
    os.umask(0o077)
    try:
        Pod(Surroundings.find()).run()
    except DominoError as error:
        _say(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
