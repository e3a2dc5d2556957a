"""Verbs in processes of their own that are killed between two of their writes to a cluster, or to a container engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

from mlflow_domino.home import Home

__all__ = ["killed"]

_PROGRAM = """
import json, os, re, signal, sys, threading
from requests import Session
from mlflow_domino.controller import Controller
from mlflow_domino.errors import DominoError
from mlflow_domino.transport import Transport

at, left, target, verb = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
arguments = json.loads(sys.argv[5])
written = open(sys.argv[6], "a")

def cut(owner, name, words):
    real = getattr(owner, name)
    def call(self, *given, **more):
        global left
        answer = real(self, *given, **more)
        method, path = words(given)
        # Not what threads do by the clock, such as holding a lock.
        if method != "GET" and threading.current_thread() is threading.main_thread():
            written.write(f"{method} {path}\\n")
            written.flush()
            left -= bool(re.search(at, f"{method} {path}"))
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(owner, name, call)

cut(Transport, "attempt", lambda given: given[1:3])
cut(Session, "request", lambda given: given[:2])
try:
    controller = Controller.open(target)
    done = controller.plane.entrance if verb == "install" else controller
    getattr(done, verb)(*arguments)
except DominoError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def killed(
    home: Home, target: str, at: str, verb: str, *arguments: Any, nth: int = 1, writes: str = os.devnull
) -> bool:
    """Run a verb of the controller's, or `install` of a gateway, that dies of SIGKILL; false where it was done before.

    Parameters
    ----------
    at : str
        What the last write is: an expression that is found in its method and path.
    nth : int
        Of the writes that are such.
    writes : str
        A file to which each write is added, for whoever looks for moments.
    """
    argv = [sys.executable, "-c", _PROGRAM, at, str(nth), target, verb, json.dumps(arguments), writes]
    environment = {**os.environ, "MLFLOW_DOMINO_HOME": str(home.root)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0
