"""The supervisor of this machine: uWSGI's Emperor, with one vassal file for each replica, and Envoy beside it.

A uWSGI master keeps the Emperor and Envoy alive; the Emperor keeps the vassals alive. When the master itself dies,
everything ends with it and every port is free; the next verb starts it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mlflow_domino.errors import Failed, InvalidInput
from mlflow_domino.home import Home, write_json, write_text

__all__ = ["Launch", "Supervisor", "clean_environment", "wait_until"]

#: What of the caller's environment every process of ours gets, and nothing else of it.
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
           "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # fmt: skip
_STOP_S = 15.0


def clean_environment() -> dict[str, str]:
    """Return the part of this process's environment that replicas may see: paths, language and certificates."""
    kept = {key: os.environ[key] for key in _PASSED if key in os.environ}
    return {"PATH": os.defpath, "LANG": "C.UTF-8", **kept}


def wait_until(condition: Callable[[], bool], timeout_s: float, *, every_s: float = 0.03) -> bool:
    """Poll `condition` until it holds; false when `timeout_s` is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


@dataclass(frozen=True)
class Launch:
    """What the wrapper runs for a vassal; see `wrapper`.

    Attributes
    ----------
    argv : tuple of str
        Program, as an absolute path, and its arguments.
    environment : mapping of str to str
        The whole environment, apart from the variables in `secrets`.
    directory, log : str
        Where it starts, and the file to which it writes.
    secrets : str or None
        Path of a JSON file of mode 0600 with the variables.
    replica : str or None
        Folder of the replica's status file.
    niceness : int
        How far it stands back where processors are scarce.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str
    log: str
    secrets: str | None = None
    replica: str | None = None
    niceness: int = 0


class Supervisor:
    """Starts, finds and stops the supervisor of one home, and tells it what to run."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._run = home.run
        self._ini = self._run / "supervisor.ini"
        self._pidfile = self._run / "supervisor.pid"
        self._stats = self._run / "emperor.sock"
        self.log = home.log("supervisor")

    def alive(self) -> bool:
        return self._master() is not None

    def start(self, envoy: Sequence[str]) -> None:
        """Start the supervisor with what the vassals folder holds; it outlives this process and its terminal.

        Parameters
        ----------
        envoy : sequence of str
            Command line of Envoy.
        """
        self._write(envoy)
        uwsgi = [sys.executable, "-c", "import sys, pyuwsgi; sys.argv[0] = 'uwsgi'; sys.exit(pyuwsgi.run())"]
        with open(self.log, "ab") as log:
            # A session of its own: Ctrl-C and the end of the terminal are not for it.
            process = subprocess.Popen(
                [*uwsgi, "--ini", str(self._ini)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True, env=clean_environment(),
            )  # fmt: skip
        if not wait_until(lambda: self._stats.exists() or process.poll() is not None, 15) or process.poll() is not None:
            raise Failed("The supervisor did not start.", log_tail=_last_lines(self.log))
        process.returncode = 0  # it is nobody's child from here on: no warning when this object goes

    def stop(self) -> None:
        """End the supervisor and everything below it; return when nothing of it is left.

        Vassals end as they wish. The rest is killed: uWSGI's own way down has a second's wait at each of its stages,
        and neither the Emperor nor Envoy has anything to save.
        """
        master = self._master()
        if master is None:
            return
        self.remove(self.names())
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [master, *master.children(recursive=True)]
            for process in family:  # the master first: it would start the others again
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            wait_until(lambda: not any(map(_lives, family)), _STOP_S)
        for path in (self._pidfile, self._stats):
            path.unlink(missing_ok=True)

    def put(self, name: str, launch: Launch) -> None:
        """Have a vassal run; the same launch again changes nothing."""
        write_json(self._run / "launch" / f"{name}.json", vars(launch))
        vassal = self._vassals / f"{name}.ini"
        if not vassal.exists():
            write_text(vassal, "[uwsgi]\n")

    def remove(self, names: Sequence[str]) -> None:
        """End vassals at once, and return when their processes are gone. Names that are not there are no error."""
        for name in names:
            # Without its file a vassal that ends is not started again, so that there is no need to wait for the
            # Emperor's next look at the folder.
            (self._vassals / f"{name}.ini").unlink(missing_ok=True)
        told: set[psutil.Process] = set()
        if not wait_until(lambda: self._ended(names, told), _STOP_S):
            for process in filter(_lives, told):  # it has nothing left to finish: it was drained
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            wait_until(lambda: self._ended(names, told), 5)
        for name in names:
            (self._run / "launch" / f"{name}.json").unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Return the vassals that are meant to run."""
        return sorted(path.stem for path in self._vassals.glob("*.ini"))

    def pids(self) -> dict[str, int]:
        """Return the process of each vassal that the Emperor runs now; empty while there is no Emperor."""
        return {v["id"].removesuffix(".ini"): v["pid"] for v in self._statistics().get("vassals", []) if v["pid"] > 0}

    def _ended(self, names: Sequence[str], told: set[psutil.Process]) -> bool:
        """Tell vassals to end, those too that the Emperor was starting again meanwhile; true when nothing is left."""
        running = set(names) & set(self.pids())
        for name in running:
            for number, process in enumerate(self._family(name)):
                if number == 0 and process not in told:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(signal.SIGINT)
                told.add(process)
        return not running and not any(map(_lives, told))

    @property
    def _vassals(self) -> Path:
        return self._run / "vassals"

    def _write(self, envoy: Sequence[str]) -> None:
        run = str(self._run)
        if not re.fullmatch(r"[\w/.,+@=:~ -]+", "".join([run, sys.executable, *envoy])):
            raise InvalidInput(
                f"{self._home.root} (or {sys.executable}) has characters that uWSGI would interpret; set MLFLOW_DOMINO_HOME to a "
                "folder whose path has letters, digits and _ / . , + @ = : ~ - only."
            )
        wrapper = Path(__file__).with_name("wrapper.py")
        command = shlex.join([sys.executable, "-I", "-S", str(wrapper), run])
        write_text(self._run / "wrapper", f'#!/bin/sh\nexec {command} "$@"\n', mode=0o700)
        self._vassals.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stats.unlink(missing_ok=True)
        self._pidfile.unlink(missing_ok=True)
        options = {
            "master": "true",
            "no-orphans": "true",
            "emperor": self._vassals,
            "emperor-freq": 1,
            "emperor-wrapper": self._run / "wrapper",
            # A replica that keeps failing is tried again every few seconds, not every few minutes.
            "emperor-max-throttle": 5000,
            "emperor-stats-server": self._stats,
            "attach-daemon": f"exec {shlex.join(envoy)}",
            "safe-pidfile": self._pidfile,
            "chmod-socket": "600",
            "umask": "077",
        }
        write_text(self._ini, "[uwsgi]\n" + "".join(f"{key} = {value}\n" for key, value in options.items()))

    def _master(self) -> psutil.Process | None:
        """Find the master by its own pid file, or by its command line where the file is missing or stale."""
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int(self._pidfile.read_text()))
            if self._is_master(process):
                return process
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self._is_master(process):
                    return process
        return None

    def _is_master(self, process: psutil.Process) -> bool:
        if (
            process.uids().real != os.getuid()
            or process.status() == psutil.STATUS_ZOMBIE
            or not self._was_started(process)
        ):
            return False
        parent = process.parent()
        return parent is None or not self._was_started(parent)

    def _was_started(self, process: psutil.Process) -> bool:
        """Whether a process has the arguments of our uWSGI; an editor of its file has not."""
        return process.cmdline()[-2:] == ["--ini", str(self._ini)]

    def _family(self, name: str) -> Iterator[psutil.Process]:
        pid = self.pids().get(name)
        if pid is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            vassal = psutil.Process(pid)
            yield vassal
            yield from vassal.children(recursive=True)

    def _statistics(self) -> dict[str, Any]:
        """Read the Emperor's statistics: it writes one JSON document to whoever connects."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(2)
                client.connect(str(self._stats))
                chunks = iter(lambda: client.recv(65536), b"")
                document: dict[str, Any] = json.loads(b"".join(chunks))
                return document
        except (OSError, ValueError):
            return {}


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _last_lines(path: Path, count: int = 20) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text("utf-8", "replace").splitlines()[-count:])
    return ""
