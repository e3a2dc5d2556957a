"""A gateway's Lease: that it lives, and which generation of the records its Envoy has accepted.

Renewed every second, and at once when there is news. It belongs to the pod, so that it goes with it.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import DominoError, NotFound
from mlflow_domino.gateway.surroundings import Surroundings
from mlflow_domino.labels import GENERATION, GENERATION_MAP, PROBLEM, RELEASE, labels, lease_name

__all__ = ["Pulse", "accepted"]

_PERIOD_S = 1.0
_DURATION_S = 5
#: A gateway that is so far behind others takes no requests until it has caught up.
_BEHIND_S = 5.0


def accepted(lease: Mapping[str, Any]) -> int:
    """Return the generation that a gateway's Lease shows; 0 where it shows none."""
    shown = str((lease["metadata"].get("annotations") or {}).get(GENERATION, ""))
    return int(shown) if shown.isdecimal() else 0


class Pulse:
    """Keeps the Lease, and looks for itself which generation is the newest: a watch may have died without a word.

    Parameters
    ----------
    cluster : Cluster
    surroundings : Surroundings
    say : callable
        Gets each new reason why the Lease cannot be renewed.
    """

    def __init__(self, cluster: Cluster, surroundings: Surroundings, say: Callable[[str], object]) -> None:
        self._cluster = cluster
        self._surroundings = surroundings
        self._say = say
        self._name = lease_name(surroundings.pod)
        self._news = threading.Event()
        self._generation = 0
        self._problem = ""
        self._behind_since: float | None = None
        self._others = 0

    @property
    def late(self) -> bool:
        """Whether others show a generation that this gateway has not accepted for some time.

        Where none does, what keeps this one from it keeps all of them: old routes are better than no gateway.
        """
        since = self._behind_since
        return since is not None and time.monotonic() - since > _BEHIND_S and self._others > self._generation

    def show(self, generation: int, problem: str = "") -> None:
        """Have the Lease show what Envoy has accepted, and why it has nothing newer."""
        if (generation, problem) != (self._generation, self._problem):
            self._generation, self._problem = generation, problem
            self._news.set()

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="lease", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        told = ""
        while True:
            self._news.clear()
            try:
                self._renew()
                self._look()
                told = ""
            except DominoError as error:
                if str(error) != told:
                    told = str(error)
                    self._say(f"the Lease {self._name} cannot be renewed: {error}")
            self._news.wait(_PERIOD_S)

    def _renew(self) -> None:
        lease = self._lease()
        try:
            self._cluster.patch("Lease", self._name, {k: lease[k] for k in ("metadata", "spec")})
        except NotFound:
            self._cluster.apply(lease)

    def _look(self) -> None:
        found = self._cluster.get("ConfigMap", GENERATION_MAP)
        text = str(((found or {}).get("data") or {}).get("generation", ""))
        if not text.isdecimal() or int(text) <= self._generation:
            self._behind_since = None
            return
        self._behind_since = self._behind_since or time.monotonic()
        leases = self._cluster.list("Lease", labels("gateway"))
        self._others = max((accepted(one) for one in leases if one["metadata"]["name"] != self._name), default=0)

    def _lease(self) -> dict[str, Any]:
        surroundings = self._surroundings
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        owner = {"apiVersion": "v1", "kind": "Pod", "name": surroundings.pod, "uid": surroundings.uid}
        owners = [owner] if surroundings.uid else []  # nobody's but for a gateway that is no pod
        shown = {GENERATION: str(self._generation), RELEASE: surroundings.release, PROBLEM: self._problem[:1000]}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self._name,
                "labels": labels("gateway"),
                "annotations": shown,
                "ownerReferences": owners,
            },
            "spec": {"holderIdentity": surroundings.pod, "leaseDurationSeconds": _DURATION_S, "renewTime": now},
        }
