"""The route table as a pure function of the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mlflow_domino.data_planes.base import World
from mlflow_domino.gateway.routes import Cluster, Route, RouteTable, is_path
from mlflow_domino.models import Endpoint, Status, Target, Version

__all__ = ["route_table"]


def route_table(world: World, addresses: Callable[[Version], tuple[str, ...]], *, generation: int = 0) -> RouteTable:
    """Return what the gateway routes where.

    `latest` and `labels/prod` lead to the versions that the endpoint names; a pinned route leads to each version that
    runs and has been ready once. Where nothing runs, or the endpoint is to stop, callers get 503 and the reason; versions
    keep their clusters while they finish their requests.

    Parameters
    ----------
    addresses : callable
        Gives the addresses of a version's replicas: sockets' paths, or host:port.
    """
    running = {v.id: v for v in world.versions if v.target is Target.RUNNING and v.replicas > 0}
    routes = [route for endpoint in world.endpoints for route in _routes(endpoint, world, running)]
    used = {r.cluster for r in routes}
    # A version that no route leads to any more is still finishing its requests; one that starts is nobody's yet.
    shown = [v for v in running.values() if v.id in used or v.status is not Status.STARTING]
    clusters = [_cluster(v, addresses(v)) for v in shown]
    return RouteTable(tuple(sorted(clusters, key=lambda c: c.name)), tuple(routes), generation)


def _cluster(version: Version, addresses: tuple[str, ...]) -> Cluster:
    concurrency = version.settings.workers * version.settings.threads
    capacity = version.replicas * (concurrency + version.settings.max_queue)
    return Cluster(
        version.id,
        addresses,
        max_requests=capacity,
        concurrency=concurrency,
        health_check=not is_path(addresses[0]),  # a port answers before the model does, a socket has its name after
    )


def _routes(endpoint: Endpoint, world: World, running: dict[str, Version]) -> Iterator[Route]:
    if endpoint.target is Target.STOPPED:
        running = {}
    labels = {"latest": endpoint.latest}
    if endpoint.settings.routing_mode == "advanced":
        labels["labels/prod"] = endpoint.promoted
    for label, version_id in labels.items():
        yield _route(endpoint, label, running.get(version_id or ""))
    for version in world.versions:
        if version.endpoint_id == endpoint.id and version.id in running and version.status is Status.RUNNING:
            yield _route(endpoint, str(version.number), version)


def _route(endpoint: Endpoint, label: str, version: Version | None) -> Route:
    if version is None:
        reason = "stopped" if endpoint.target is Target.STOPPED else "not ready"
        return Route(endpoint.id, label, None, reason=reason)
    settings = version.settings
    return Route(endpoint.id, label, version.id, timeout_s=settings.request_timeout_s, max_body=settings.max_body)
