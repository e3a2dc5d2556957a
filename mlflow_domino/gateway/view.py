"""What the objects of a namespace say about routes: records, generation, and addresses of replicas."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from mlflow_domino.errors import InvalidInput
from mlflow_domino.gateway.inventory import AsyncEndpoint
from mlflow_domino.gateway.routes import Cluster, Route, RouteTable
from mlflow_domino.gateway.routing import async_endpoints, route_table
from mlflow_domino.labels import KIND
from mlflow_domino.models import Endpoint, Target, Version, World, valid_id
from mlflow_domino.written import endpoint_of, version_of

__all__ = ["Sight", "View"]

Manifest = Mapping[str, Any]
Say = Callable[[str], object]

#: Names of the ports of a version's Service.
_REQUESTS, _MESSAGES = "http", "seldon"
#: Of requests, where a slice written by hand names none.
_PORT = 8080
_SERVICE = "kubernetes.io/service-name"
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, InvalidInput)


@dataclass(frozen=True)
class Sight:
    """What was seen at one moment.

    Attributes
    ----------
    generation : int
        Every record that was written before it is in `world`; 0 where nobody has published yet.
    ready : mapping of str to tuple of str
        Addresses of the replicas of a version that take requests, by the version's id.
    messages : mapping of str to tuple of str
        Likewise, where those of an asynchronous version take Seldon messages.
    """

    generation: int
    world: World
    ready: Mapping[str, tuple[str, ...]]
    messages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def addresses(self, version: Version) -> tuple[str, ...]:
        return self.ready.get(version.id, ())

    def message_addresses(self, version: Version) -> tuple[str, ...]:
        return self.messages.get(version.id, ())

    def table(self, say: Say, *, gateways: int = 1) -> RouteTable:
        """Return what to route where; an endpoint whose records make no sense costs nobody else's routes.

        Parameters
        ----------
        say : callable
            Gets the reason why an endpoint has no routes.
        gateways : int
            How many there are in the namespace.
        """
        clusters: list[Cluster] = []
        routes: list[Route] = []
        for endpoint in self.world.endpoints:
            own = tuple(v for v in self.world.versions if v.endpoint_id == endpoint.id)
            try:
                part = route_table(World((endpoint,), own), self.addresses, health_check=False, gateways=gateways)
            except _DAMAGED as error:
                say(f"endpoint {endpoint.id} is not routed: {error}")
                continue
            clusters += part.clusters
            routes += part.routes
        return RouteTable(tuple(sorted(clusters, key=lambda c: c.name)), tuple(routes), self.generation)

    def asynchronous(
        self, say: Say, *, tokens: Callable[[str], str], token: Callable[[str], str]
    ) -> tuple[AsyncEndpoint, ...]:
        """Return where predictions of each asynchronous endpoint are sent, as `async_endpoints`; likewise."""
        found: list[AsyncEndpoint] = []
        for endpoint in self.world.endpoints:
            own = tuple(v for v in self.world.versions if v.endpoint_id == endpoint.id)
            try:
                world = World((endpoint,), own)
                found += async_endpoints(world, self.message_addresses, tokens=tokens, token=token)
            except _DAMAGED as error:
                say(f"predictions of endpoint {endpoint.id} are not dispatched: {error}")
        return tuple(found)

    def late(self, before: RouteTable) -> set[str]:
        """Return the versions to which a route is to move while not all of their replicas are known here.

        Their pods are ready, or the records would not say so; only the news of it has not come.
        """
        known = {c.name for c in before.clusters}
        replicas = {v.id: v.replicas for v in self.world.versions}
        everywhere = dataclasses.replace(self, ready=dict.fromkeys(replicas, ("0.0.0.0:1",)))
        wanted = {r.cluster for r in everywhere.table(lambda _: None).routes} - known
        return {v for v in wanted if v is not None and len(self.ready.get(v, ())) < replicas[v]}


class View:
    """The objects as they were seen last; two watches write, one thread reads.

    Parameters
    ----------
    say : callable
        Gets what is wrong with an object, once for each change of it.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._lock = threading.Condition()
        self._records: dict[str, Endpoint | Version] = {}
        self._generation = 0
        self._silent: frozenset[str] = frozenset()
        self._slices: dict[str, Manifest] = {}
        self._listed: set[str] = set()
        self._changes = 0

    # ---- writers -----------------------------------------------------------------------------------------------------

    def replace(self, kind: str, objects: Iterable[Manifest]) -> None:
        """Take in everything that there is of a kind, ConfigMap or EndpointSlice."""
        with self._lock:
            if kind == "EndpointSlice":
                self._slices = {_name(one): one for one in objects}
            else:
                found = {_name(one): one for one in objects}
                self._records = {name: kept for name, kept in self._records.items() if name in found}
                for one in found.values():
                    self._read(one)
            self._listed.add(kind)
            self._changed()

    def change(self, what: str, one: Manifest) -> None:
        """Take in a change: ``ADDED``, ``MODIFIED`` or ``DELETED``."""
        with self._lock:
            if one.get("kind") == "EndpointSlice":
                self._change_slice(what, one)
            elif what == "DELETED":
                self._records.pop(_name(one), None)
            else:
                self._read(one)
            self._changed()

    def _change_slice(self, what: str, one: Manifest) -> None:
        before = self._slices.get(_name(one))
        # It may have been listed since, beside the watch.
        if before is not None and _moment(before) > _moment(one):
            return
        if what == "DELETED":
            self._slices.pop(_name(one), None)
        else:
            self._slices[_name(one)] = one

    def _read(self, one: Manifest) -> None:
        """Keep what a ConfigMap holds; one that cannot be read changes nothing."""
        kind = (one["metadata"].get("labels") or {}).get(KIND, "")
        data = one.get("data") or {}
        try:
            if kind == "endpoint":
                self._keep(one, endpoint_of(data["endpoint.json"], 0))
            elif kind == "version":
                self._keep(one, version_of(data["version.json"], 0))
            elif kind == "generation":
                self._generation = int(data["generation"])
                self._silent = frozenset(str(data.get("silent", "")).split(","))
        except _DAMAGED as error:
            self._say(f"ConfigMap {_name(one)} cannot be read, and changes nothing: {type(error).__name__}: {error}")

    def _keep(self, one: Manifest, record: Endpoint | Version) -> None:
        if not valid_id(record.id) or not _name(one).endswith(f"-{record.id}"):
            raise ValueError(f"it holds {record.id!r}")
        self._records[_name(one)] = record

    def _changed(self) -> None:
        self._changes += 1
        self._lock.notify_all()

    # ---- the reader --------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether everything has been listed once."""
        return {"ConfigMap", "EndpointSlice"} <= self._listed

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def changes(self) -> int:
        """Grows with each change."""
        return self._changes

    def wait(self, changes: int, timeout_s: float | None) -> None:
        """Return when there were more changes than `changes`, or the time is over."""
        with self._lock:
            self._lock.wait_for(lambda: self._changes != changes, timeout_s)

    def sight(self) -> Sight:
        with self._lock:
            records = list(self._records.values())
            slices, generation, silent = list(self._slices.values()), self._generation, self._silent
        endpoints = sorted((_silenced(r, silent) for r in records if isinstance(r, Endpoint)), key=lambda e: e.id)
        versions = sorted((r for r in records if isinstance(r, Version)), key=lambda v: v.id)
        found = {port: _addresses(slices, port) for port in (_REQUESTS, _MESSAGES)}
        world = World(tuple(endpoints), tuple(versions))
        return Sight(generation, world, _best(found[_REQUESTS]), _best(found[_MESSAGES], ending=False))


def _silenced(endpoint: Endpoint, silent: Set[str]) -> Endpoint:
    """Return an endpoint as routes are to be made of it: whoever publishes may want it to refuse requests for a while."""
    return dataclasses.replace(endpoint, target=Target.STOPPED) if endpoint.id in silent else endpoint


def _name(one: Manifest) -> str:
    return str(one["metadata"]["name"])


def _moment(one: Manifest) -> int:
    version = str(one["metadata"].get("resourceVersion", ""))
    return int(version) if version.isdecimal() else 0


def _addresses(slices: Iterable[Manifest], port: str) -> dict[str, dict[str, set[str]]]:
    """Return the addresses at a port of each version's replicas, by what they are: ready or ending, and of which family."""
    found: dict[str, dict[str, set[str]]] = {}
    for one in slices:
        name = (one["metadata"].get("labels") or {}).get(_SERVICE, "")
        version, family = name.removeprefix("model-"), one.get("addressType", "IPv4")
        number = _number(one, port)
        if not valid_id(version) or family not in ("IPv4", "IPv6") or not number:
            continue
        for endpoint in one.get("endpoints") or ():
            kind = _kind(endpoint.get("conditions") or {})
            for address in endpoint["addresses"][:1] if kind else ():
                written = f"[{address}]" if family == "IPv6" else address
                found.setdefault(version, {}).setdefault(f"{kind} {family}", set()).add(f"{written}:{number}")
    return found


def _number(one: Manifest, port: str) -> int:
    """Return the number of a port of a slice, 0 where there is none of that name."""
    names = ("http", "", None) if port == _REQUESTS else (port,)
    found = next((p.get("port") for p in one.get("ports") or () if p.get("name") in names), None)
    return int(found or (_PORT if port == _REQUESTS else 0))


def _best(found: Mapping[str, Mapping[str, set[str]]], *, ending: bool = True) -> dict[str, tuple[str, ...]]:
    """Return the addresses of the replicas that are to be used.

    While none is ready, those that end and still serve: for a request, a replica that is being replaced is better than
    none. What is queued can wait for its successor, and would keep it from its end.
    """
    order = ("ready IPv4", "ready IPv6", "ending IPv4", "ending IPv6")  # of a pod with two addresses, one
    usable = order if ending else order[:2]
    best = {version: next((kinds[k] for k in usable if k in kinds), set()) for version, kinds in found.items()}
    return {version: tuple(sorted(addresses)) for version, addresses in best.items() if addresses}


def _kind(conditions: Mapping[str, Any]) -> str:
    """Tell what a replica's conditions mean; nothing said is ready, as the API has it."""
    if conditions.get("ready", True) is not False and not conditions.get("terminating"):
        return "ready"
    return "ending" if conditions.get("serving") and conditions.get("terminating") else ""
