"""What the gateway routes where, as frozen values; nothing that a user wrote gets past them unchecked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_domino.errors import InvalidInput

__all__ = ["REASONS", "Cluster", "Move", "Route", "RouteTable", "check_address", "is_path", "moves", "stand_ins"]

#: Why a route answers 503, and what callers are told.
REASONS = {
    "stopped": "the endpoint is stopped; its owner can start it",
    "not ready": "no version of the endpoint is ready yet; try again later",
}
_ID = re.compile(r"[0-9a-f]{24}")
_LABEL = re.compile(r"latest|labels/prod|[1-9][0-9]{0,8}")
_PORT = r":[1-9][0-9]{0,4}"
_HOST_PORT = re.compile(rf"([A-Za-z0-9]([A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?|\[[0-9a-fA-F:.]{{2,45}}\]){_PORT}")
_PATH = re.compile(r"/[^\x00-\x1f\x7f]+")
#: Of a Unix socket's path, in bytes (sys/un.h has 108 and a null).
_PATH_LIMIT = 107
_TIMEOUT_LIMIT_S = 86400.0
_BODY_LIMIT = 1 << 30
_REQUESTS_LIMIT = 1 << 24


def _check(holds: object, message: str) -> None:
    if not holds:
        raise InvalidInput(message)


def is_path(address: str) -> bool:
    """Whether an address is a Unix socket's path, rather than host:port."""
    return address.startswith("/")


def check_address(address: str) -> None:
    """Refuse what is neither the path of a Unix socket nor host:port."""
    if is_path(address):
        _check(_PATH.fullmatch(address), f"{address!r} cannot be the path of a socket.")
        length = len(address.encode("utf-8", "surrogateescape"))
        _check(length <= _PATH_LIMIT, f"The socket's path {address} has {length} bytes, the limit is {_PATH_LIMIT}.")
    else:
        _check(_HOST_PORT.fullmatch(address), f"{address!r} is neither the path of a socket nor host:port.")
        _check(int(address.rpartition(":")[2]) < 1 << 16, f"{address!r} has no valid port.")


@dataclass(frozen=True)
class Cluster:
    """The replicas of one version.

    Attributes
    ----------
    name : str
        The version's id.
    addresses : tuple of str
        Of each replica: the path of a Unix socket, or host:port; at least one.
    max_requests : int
        Requests that may wait or run at once before callers get 429: replicas x (workers x threads + queue).
    concurrency : int
        Requests that a replica runs at once: workers x threads.
    gateways : int
        How many gateways send requests to the same replicas.
    health_check : bool
        Whether the gateway itself asks ``/ready``: needed where an address answers before the model does.
    """

    name: str
    addresses: tuple[str, ...]
    max_requests: int = 1024
    health_check: bool = False
    concurrency: int = 1
    gateways: int = 1

    def __post_init__(self) -> None:
        _check(_ID.fullmatch(self.name), f"{self.name!r} is no version's id.")
        _check(self.addresses, f"Version {self.name} has no replica to route to.")
        _check(len(set(self.addresses)) == len(self.addresses), f"Version {self.name} has an address twice.")
        for address in self.addresses:
            check_address(address)
        _check(1 <= self.max_requests <= _REQUESTS_LIMIT, f"max_requests={self.max_requests} is out of bounds.")
        _check(1 <= self.concurrency <= _REQUESTS_LIMIT, f"concurrency={self.concurrency} is out of bounds.")
        _check(self.gateways >= 1, f"gateways={self.gateways} is out of bounds.")


@dataclass(frozen=True)
class Route:
    """One way to an endpoint: ``/models/{endpoint_id}/{label}/...``.

    Attributes
    ----------
    label : str
        ``latest``, ``labels/prod`` or a version's number.
    cluster : str or None
        Name of the cluster that answers; None: callers get 503.
    reason : str
        A key of `REASONS`, where there is no cluster.
    timeout_s : float
        From the last byte of the request to the last byte of the answer.
    max_body : int
        Bytes of the largest request body.
    """

    endpoint_id: str
    label: str
    cluster: str | None
    reason: str = "not ready"
    timeout_s: float = 60.0
    max_body: int = 10 << 20

    def __post_init__(self) -> None:
        _check(_ID.fullmatch(self.endpoint_id), f"{self.endpoint_id!r} is no endpoint's id.")
        _check(_LABEL.fullmatch(self.label), f"{self.label!r} is no route: latest, labels/prod or a number is wanted.")
        _check(self.reason in REASONS, f"{self.reason!r} is none of {', '.join(REASONS)}.")
        _check(0 < self.timeout_s <= _TIMEOUT_LIMIT_S, f"timeout_s={self.timeout_s} is out of bounds.")
        _check(1 <= self.max_body <= _BODY_LIMIT, f"max_body={self.max_body} is out of bounds.")


@dataclass(frozen=True)
class RouteTable:
    """Everything that a gateway routes.

    Attributes
    ----------
    generation : int
        Grows with each change of the records; a gateway shows the one that it has accepted.
    """

    clusters: tuple[Cluster, ...] = ()
    routes: tuple[Route, ...] = ()
    generation: int = 0

    def __post_init__(self) -> None:
        names = [c.name for c in self.clusters]
        _check(len(set(names)) == len(names), "A version is in the route table twice.")
        ways = [(r.endpoint_id, r.label) for r in self.routes]
        _check(len(set(ways)) == len(ways), "A route is in the route table twice.")
        for route in self.routes:
            known = route.cluster is None or route.cluster in names
            _check(known, f"Route {route.endpoint_id}/{route.label} leads to {route.cluster}, which has no replicas.")

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RouteTable:
        clusters = (Cluster(**{**c, "addresses": tuple(c["addresses"])}) for c in document["clusters"])
        return cls(tuple(clusters), tuple(Route(**r) for r in document["routes"]), document["generation"])


@dataclass(frozen=True)
class Move:
    """A route that led to one version, and leads to another now.

    A request gets its route when its headers are read, and goes to a replica when its body is complete. One whose body
    was still coming while the route moved, and the old version drained and went, is answered by the new version: until
    `until_ms` the old version's cluster has the new version's replicas.
    """

    old: str
    new: str
    until_ms: int


def moves(
    before: RouteTable, after: RouteTable, known: Iterable[Move], *, now_ms: int, keep_ms: int
) -> tuple[Move, ...]:
    """Return the moves that count at `now_ms`: those of `known` that are not too old, and those to `after`."""
    now = {(r.endpoint_id, r.label): r.cluster for r in after.routes}
    current = {move.old: move for move in known if move.until_ms > now_ms}
    for route in before.routes:
        new = now.get((route.endpoint_id, route.label))
        if route.cluster is not None and new is not None and new != route.cluster:
            current[route.cluster] = Move(route.cluster, new, now_ms + keep_ms)
    return tuple(current[old] for old in sorted(current))


def stand_ins(present: Iterable[Cluster], known: Iterable[Move]) -> tuple[Cluster, ...]:
    """Return clusters in the names of versions that are gone, with the replicas of those that took over."""
    clusters = {c.name: c for c in present}
    successor = {move.old: move.new for move in known}
    found = []
    for old in sorted(successor):
        name, passed = old, {old}
        while name not in clusters and successor.get(name, old) not in passed:
            name = successor[name]
            passed.add(name)
        if name in clusters and name != old:
            found.append(dataclasses.replace(clusters[name], name=old))
    return tuple(found)
