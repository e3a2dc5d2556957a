"""A lock in a cluster: a Lease that its holder renews, and that others may take when it has not been renewed for long.

One whose holder was a process of this machine, and is dead, is free at once. All times in a Lease are the API server's,
as its answers tell it: clocks of machines differ.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_domino.cluster import Cluster
from mlflow_domino.dialect import Manifest
from mlflow_domino.errors import AlreadyExists, Conflict, DominoError, NotFound
from mlflow_domino.holder import dead, holder

__all__ = ["Lease", "held", "is_free"]

_DURATION_S = 15
_RENEW_S = 4.0
_RETRY_S = 1.0
_POLL_S = 0.2
#: So much earlier than others the holder counts a Lease as lost: the server tells its time in whole seconds.
_MARGIN_S = 3.0
_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


@contextlib.contextmanager
def held(cluster: Cluster, name: str, labels: Mapping[str, str], *, wait: bool, conflict: str = "") -> Iterator[Lease]:
    """Hold a lock until the end of the block.

    Parameters
    ----------
    name : str
        Of the Lease.
    wait : bool
        Whether to wait for somebody else who holds it.
    conflict : str
        What to say when it is not to be waited for.

    Raises
    ------
    Conflict
        Somebody else holds it.
    """
    lease = Lease(cluster, name, labels)
    try:
        lease.take(wait=wait, conflict=conflict)
        yield lease
    finally:
        lease.release()


def is_free(lease: Mapping[str, Any], now: float) -> bool:
    """Whether a Lease has no holder, one that was a process of this machine and has ended, or one that is late to renew it."""
    spec = lease.get("spec") or {}
    if dead(spec.get("holderIdentity")):
        return True
    renewed = spec.get("renewTime") or spec.get("acquireTime")
    if not spec.get("holderIdentity") or not renewed:
        return True
    moment = datetime.datetime.fromisoformat(str(renewed).replace("Z", "+00:00"))
    return moment.timestamp() + _duration(lease) < now


class Lease:
    """One attempt at a lock; `held` is the way to use it."""

    def __init__(self, cluster: Cluster, name: str, labels: Mapping[str, str]) -> None:
        self._cluster = cluster
        self._name = name
        self._labels = dict(labels)
        self._holder = holder()
        self._mine: Manifest | None = None
        self._stolen = False
        self._renewed = 0.0
        self._seen = ("", 0.0)
        self._renewing = threading.Lock()
        self._ended = threading.Event()

    @property
    def lost(self) -> bool:
        """Whether somebody else may hold it by now."""
        return self._stolen or _now() - self._renewed > _DURATION_S - _MARGIN_S

    def check(self) -> None:
        """Raise `Conflict` when the lock is lost: what follows might undo another one's work."""
        if self.lost:
            raise Conflict(
                f"The lock {self._name} in {self._cluster} was lost, because the cluster could not be reached for "
                f"{_DURATION_S} s or somebody removed it; look at what is there and try again."
            )

    def take(self, *, wait: bool, conflict: str) -> None:
        found = None
        while not (self._free(found) and self._write(found)):
            found = self._cluster.get("Lease", self._name)
            if not self._free(found):
                if not wait:
                    raise Conflict(conflict or f"Somebody else holds the lock {self._name} in {self._cluster}.")
                time.sleep(_POLL_S)
        threading.Thread(target=self._keep, name=self._name, daemon=True).start()

    def release(self) -> None:
        """Let others have it; what cannot be said to the cluster now, it finds out by itself."""
        self._ended.set()
        with self._renewing, contextlib.suppress(DominoError):
            mine = self._mine
            if mine is None:  # interrupted in the midst of taking it?
                found = self._cluster.get("Lease", self._name) if self._renewed else None
                mine = found if found and found["spec"].get("holderIdentity") == self._holder else None
            if mine is not None and not self._stolen:
                meta = mine["metadata"]
                self._cluster.delete(
                    "Lease", self._name, uid=meta["uid"], resource_version=meta["resourceVersion"]
                )  # nobody else's

    def _free(self, found: Manifest | None) -> bool:
        if found is None:
            return True
        version = found["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = version, _now()
        # Unchanged for so long by our own clock: its times may be nonsense.
        return is_free(found, self._cluster.clock()) or _now() - self._seen[1] > _duration(found)

    def _write(self, found: Manifest | None) -> bool:
        """Make the Lease ours, or find that somebody else was faster."""
        moment = self._time()
        spec = {
            "holderIdentity": self._holder,
            "leaseDurationSeconds": _DURATION_S,
            "acquireTime": moment,
            "renewTime": moment,
        }
        begun = self._renewed = _now()
        try:
            if found is None:
                meta = {"name": self._name, "labels": self._labels}
                made = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
                self._mine = self._cluster.create(made)
            else:
                self._mine = self._cluster.replace({**found, "spec": spec})
        except (AlreadyExists, Conflict):
            self._renewed = 0.0
            return False
        except NotFound:
            if found is None:  # no namespace
                raise
            return False
        self._renewed = begun
        return True

    def _keep(self) -> None:
        pause = _RENEW_S
        while not self._ended.wait(pause) and not self._stolen:
            with self._renewing:
                pause = _RENEW_S if self._ended.is_set() or self._renew() else _RETRY_S

    def _renew(self) -> bool:
        assert self._mine is not None
        begun = _now()
        try:
            self._mine = self._cluster.replace(
                {**self._mine, "spec": {**self._mine["spec"], "renewTime": self._time()}}
            )
            self._renewed = begun
        except (Conflict, NotFound):
            self._look()
            return False
        except DominoError:
            return False
        return True

    def _look(self) -> None:
        """Find out whether the Lease is somebody else's now, or only wears a new label."""
        with contextlib.suppress(DominoError):
            found = self._cluster.get("Lease", self._name)
            if found is not None and (found.get("spec") or {}).get("holderIdentity") == self._holder:
                self._mine = found
            else:
                self._stolen = True

    def _time(self) -> str:
        moment = datetime.datetime.fromtimestamp(self._cluster.clock(), tz=datetime.timezone.utc)
        return moment.strftime(_FORMAT)


def _duration(lease: Mapping[str, Any]) -> float:
    return float((lease.get("spec") or {}).get("leaseDurationSeconds") or _DURATION_S)


def _now() -> float:
    """Return a time that a machine's sleep does not stop, where the system has one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
