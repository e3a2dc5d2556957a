"""Keeps the logs of this machine's programs short: the supervisor's, Envoy's, the gateway's and the dispatcher's."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow_domino.logs import shorten

__all__ = ["logs_beside", "watch_logs"]

_PROGRAMS = ("supervisor", "envoy", "gateway", "dispatcher")
_LIMIT = 16 << 20
_PERIOD_S = 60.0


def logs_beside(own: Path) -> list[Path]:
    """Return the logs of the programs that serve one data plane, from the gateway's own; none for any other file."""
    stem, _, suffix = own.name.partition("gateway")
    if stem or not suffix.endswith(".log"):
        return []
    return [own.with_name(program + suffix) for program in _PROGRAMS]


def watch_logs(*, limit: int = _LIMIT, period_s: float = _PERIOD_S) -> threading.Thread | None:
    """Shorten the logs again and again, from a thread that ends with the process.

    Which logs follows from this process's own, its standard error; in a pod, whose engine keeps its log, that is no
    file, and there is nothing to do.

    Parameters
    ----------
    limit : int
        Bytes.
    period_s : float
        Between two looks.
    """
    try:
        logs = logs_beside(Path(os.readlink("/proc/self/fd/2")))
    except OSError:
        return None
    if not logs:
        return None
    thread = threading.Thread(target=_watch, args=(logs, limit, period_s), name="logs", daemon=True)
    thread.start()
    return thread


def _watch(logs: Sequence[Path], limit: int, period_s: float) -> None:
    told: dict[Path, str] = {}
    while True:
        for log in logs:
            try:
                shorten(log, limit)
                told.pop(log, None)
            except OSError as error:  # such as a full disk
                if told.get(log) != str(error):
                    told[log] = str(error)
                    print(f"{log} could not be shortened: {error}", file=sys.stderr, flush=True)
        time.sleep(period_s)
