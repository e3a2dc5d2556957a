"""Keeps a view of a cluster's objects of one kind: listed once, then watched; listed again whenever that is needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import DominoError, Expired
from mlflow_domino.gateway.view import View
from mlflow_domino.labels import MANAGED

__all__ = ["follow"]

#: A watch that died without a word is noticed after so long at most.
_WATCH_S = 10.0
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 2.0


def follow(cluster: Cluster, kind: str, view: View, say: Callable[[str], object]) -> threading.Thread:
    """Start a thread that keeps `view` up to date, and ends with the process.

    While the API server is away the view stays as it was. Where a watch fails everything is listed anew, so that
    nothing is missed whatever happened to the server meanwhile.

    Parameters
    ----------
    kind : str
        Of the objects that are ours.
    say : callable
        Gets each new reason why the cluster cannot be followed.
    """
    thread = threading.Thread(target=_run, args=(cluster, kind, view, say), name=f"follow {kind}", daemon=True)
    thread.start()
    return thread


def _run(cluster: Cluster, kind: str, view: View, say: Callable[[str], object]) -> None:
    moment, pause, told = "", _FIRST_PAUSE_S, ""
    while True:
        try:
            if not moment:
                listing = cluster.list(kind, MANAGED)
                view.replace(kind, listing)
                moment = listing.resource_version
                if told:
                    say(f"{kind}s are followed again")
                told = ""
            begun = time.monotonic()
            for what, one in cluster.watch(kind, MANAGED, resource_version=moment, timeout_s=_WATCH_S):
                moment = str(one["metadata"]["resourceVersion"])
                if what != "BOOKMARK":
                    view.change(what, one)
            if time.monotonic() - begun > _FIRST_PAUSE_S:  # else a server that is going down
                pause = _FIRST_PAUSE_S
                continue
        except Expired:
            moment = ""
            continue
        except (DominoError, ValueError, KeyError, TypeError) as error:  # others may answer in its place
            moment = ""
            if str(error) != told:
                told = str(error)
                say(f"{kind}s cannot be followed: {error}")
        time.sleep(pause)
        pause = min(_LAST_PAUSE_S, pause * 2)
