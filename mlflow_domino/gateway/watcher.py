"""Has Envoy follow the objects of a namespace: ``python -m mlflow_domino.gateway.watcher``, in a gateway's pod.

Two watches keep a view of records and addresses; one thread turns each change into routes, has Envoy accept them, and
only then shows the generation on the pod's Lease. While the API server is away everything stays as it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Set
from dataclasses import replace

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import DominoError, GatewayFailed, InvalidInput
from mlflow_domino.gateway.answers import serve
from mlflow_domino.gateway.follower import follow
from mlflow_domino.gateway.inventory import Replica
from mlflow_domino.gateway.keys import Keys
from mlflow_domino.gateway.pulse import Pulse
from mlflow_domino.gateway.routes import RouteTable
from mlflow_domino.gateway.surroundings import Surroundings
from mlflow_domino.gateway.view import Sight, View
from mlflow_domino.gateway.wake import follow as dispatched

__all__ = ["Watcher", "main"]

#: How long routes wait for news of replicas that the records call ready.
_NEWS_S = 3.0
#: How long they wait for a dispatcher that is busy.
_DISPATCHER_S = 2.0
_FIRST_PAUSE_S = 0.25
_LAST_PAUSE_S = 10.0
_SERVICE = "kubernetes.io/service-name"


class Watcher:
    """Applies what is seen to Envoy, and knows whether this gateway is fit to serve."""

    def __init__(self, surroundings: Surroundings, cluster: Cluster) -> None:
        self._surroundings = surroundings
        self._cluster = cluster
        self._envoy = surroundings.envoy
        self._view = View(_say)
        self._pulse = Pulse(cluster, surroundings, _say)
        self._keys = Keys(cluster, surroundings.tokens, _say)
        self._published: RouteTable | None = None
        self._awaited: dict[str, float] = {}
        self._accepted = -1

    def run(self) -> None:
        """Follow for ever."""
        serve(self._surroundings, unfit=self.unfit, active=self._envoy.active)
        for kind in ("ConfigMap", "EndpointSlice"):
            follow(self._cluster, kind, self._view, _say)
        self._pulse.start()
        told, pause = "", _FIRST_PAUSE_S
        while True:
            changes, problem, done = self._view.changes, "", False
            try:
                done = self._view.complete and self._apply()
            except DominoError as error:
                problem = error.message
                if str(error) != told:
                    told = str(error)
                    _say(told)
            self._pulse.show(max(self._accepted, 0), problem)
            self._view.wait(changes, None if done else pause)
            pause = _FIRST_PAUSE_S if changes != self._view.changes else min(_LAST_PAUSE_S, pause * 2)

    def unfit(self) -> str:
        """Return why this gateway should get no requests; empty where it should."""
        if self._surroundings.leaving.exists():
            return "leaving"
        if self._accepted < 0:
            return "still reading the records"
        if self._pulse.late:
            return "behind the other gateways"
        return "" if self._envoy.ready() else "Envoy does not answer"

    def _apply(self) -> bool:
        """Have Envoy route as the view says; false when something is still to come."""
        sight = self._view.sight()
        before = self._published or self._envoy.published()
        if self._await_news(sight, before):
            return False
        table = sight.table(_say, gateways=self._surroundings.gateways)
        if self._published is None or replace(table, generation=0) != replace(self._published, generation=0):
            self._envoy.publish(table)
            self._envoy.retire(table)
            self._published = table
        told = self._tell(sight)
        self._accepted = sight.generation
        self._pulse.show(self._accepted)
        return told

    def _tell(self, sight: Sight) -> bool:
        """Tell the application and the dispatcher what is seen; false when something of it is still to come.

        Raises
        ------
        GatewayFailed
            They do not follow, so that others must not count on it.
        """
        endpoints = {e.id for e in sight.world.endpoints}
        queued = {e.id for e in sight.world.endpoints if e.settings.is_async}
        known = self._keys.fetch(endpoints, queued, sight.generation)
        asynchronous = sight.asynchronous(
            _say, tokens=lambda e: str(self._keys.callers(e)), token=lambda e: str(self._keys.own(e))
        )
        inventory = self._surroundings.tell(self._replicas(sight, endpoints), asynchronous)
        if not queued:
            return known
        if not self._keys.current(sight.generation):
            raise GatewayFailed("The tokens of asynchronous endpoints cannot be read.")
        if inventory.queue is None:
            return False
        if not dispatched(inventory.queue.wake, inventory.generation, timeout_s=_DISPATCHER_S):
            raise GatewayFailed("The dispatcher of predictions does not follow.")
        return known

    def _await_news(self, sight: Sight, before: RouteTable) -> bool:
        """Whether a route is to wait for addresses: records and addresses come by two ways, and one may be slower."""
        late = sight.late(before)
        now = time.monotonic()
        for version in late - self._awaited.keys():
            self._awaited[version] = now + _NEWS_S
            with contextlib.suppress(DominoError):
                for one in self._cluster.list("EndpointSlice", {_SERVICE: f"model-{version}"}):
                    self._view.change("MODIFIED", one)
        self._awaited = {v: until for v, until in self._awaited.items() if v in late}
        return any(until > now for until in self._awaited.values())

    def _replicas(self, sight: Sight, endpoints: Set[str]) -> Iterator[Replica]:
        versions = {v.id: v for v in sight.world.versions if v.endpoint_id in endpoints}
        for version_id in sorted(versions.keys() & sight.ready.keys()):
            version = versions[version_id]
            token = str(self._keys.own(version.endpoint_id))
            for number, address in enumerate(sight.addresses(version)):
                try:
                    yield Replica(version.endpoint_id, version.number, number, address, token)
                except InvalidInput:  # an address that nobody routes to either
                    continue


def _say(text: str) -> None:
    print(f"watcher: {text}", file=sys.stderr, flush=True)


def main() -> None:
    os.umask(0o077)
    surroundings = Surroundings.find()
    Watcher(surroundings, Cluster(namespace=surroundings.namespace)).run()


if __name__ == "__main__":
    main()
