"""The route table, and where asynchronous predictions go, as pure functions of the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from mlflow_domino.gateway.inventory import AsyncEndpoint
from mlflow_domino.gateway.routes import Cluster, Route, RouteTable, is_path
from mlflow_domino.models import Endpoint, Status, Target, Version, World

__all__ = ["async_endpoints", "route_table"]


def route_table(
    world: World,
    addresses: Callable[[Version], tuple[str, ...]],
    *,
    generation: int = 0,
    health_check: bool | None = None,
    gateways: int = 1,
) -> RouteTable:
    """Return what the gateway routes where.

    `latest` and `labels/prod` lead to the versions that the endpoint names; a pinned route leads to each version that
    runs and has been ready once. Where nothing runs or can be reached, or the endpoint is to stop, callers get 503 and
    the reason; versions keep their clusters while they finish their requests.

    Parameters
    ----------
    addresses : callable
        Gives the addresses of a version's replicas: sockets' paths, or host:port; none where no replica can be reached.
    health_check : bool or None
        Whether the gateway itself asks replicas whether they are ready; None: where they are no sockets.
    gateways : int
        How many gateways send requests to the same replicas.
    """
    running = {v.id: v for v in world.versions if v.target is Target.RUNNING and v.replicas > 0}
    wanted = [way for endpoint in world.endpoints for way in _ways(endpoint, world, running)]
    used = {version.id for _, _, version in wanted if version is not None}
    # A version that no route leads to any more is still finishing its requests; one that starts is nobody's yet.
    shown = [v for v in running.values() if v.id in used or v.status is not Status.STARTING]
    clusters = {v.id: _cluster(v, found, health_check, gateways) for v in shown if (found := addresses(v))}
    routes = [_route(endpoint, label, version, clusters) for endpoint, label, version in wanted]
    return RouteTable(tuple(sorted(clusters.values(), key=lambda c: c.name)), tuple(routes), generation)


def _cluster(version: Version, addresses: tuple[str, ...], health_check: bool | None, gateways: int) -> Cluster:
    concurrency = version.settings.workers * version.settings.threads
    capacity = len(addresses) * (concurrency + version.settings.max_queue)
    if health_check is None:
        health_check = not is_path(addresses[0])  # a port answers before the model does, a socket has its name after
    return Cluster(
        version.id,
        addresses,
        max_requests=capacity,
        concurrency=concurrency,
        health_check=health_check,
        gateways=gateways,
    )


def _ways(
    endpoint: Endpoint, world: World, running: Mapping[str, Version]
) -> Iterator[tuple[Endpoint, str, Version | None]]:
    """Yield each label of an endpoint, with the version that it means where that runs."""
    if endpoint.target is Target.STOPPED:
        running = {}
    labels = {"latest": endpoint.latest}
    if endpoint.settings.routing_mode == "advanced":
        labels["labels/prod"] = endpoint.promoted
    for label, version_id in labels.items():
        yield endpoint, label, running.get(version_id or "")
    for version in world.versions:
        if version.endpoint_id == endpoint.id and version.id in running and version.status is Status.RUNNING:
            yield endpoint, str(version.number), version


def _route(endpoint: Endpoint, label: str, version: Version | None, clusters: Mapping[str, Cluster]) -> Route:
    if version is None or version.id not in clusters:
        reason = "stopped" if endpoint.target is Target.STOPPED else "not ready"
        return Route(endpoint.id, label, None, reason=reason)
    settings = version.settings
    return Route(endpoint.id, label, version.id, timeout_s=settings.request_timeout_s, max_body=settings.max_body)


def async_endpoints(
    world: World,
    addresses: Callable[[Version], tuple[str, ...]],
    *,
    tokens: Callable[[str], str],
    token: Callable[[str], str],
) -> tuple[AsyncEndpoint, ...]:
    """Return where predictions of each asynchronous endpoint are sent: to its `latest` version only.

    Parameters
    ----------
    addresses : callable
        Where a version's replicas take Seldon messages; none where no replica can be reached.
    tokens, token : callable
        Give, for an endpoint's id, the paths of the digests of its tokens and of the gateway's own token.
    """
    running = {v.id: v for v in world.versions if v.target is Target.RUNNING and v.replicas > 0}
    return tuple(
        _async_endpoint(
            endpoint, running.get(endpoint.latest or ""), addresses, tokens(endpoint.id), token(endpoint.id)
        )
        for endpoint in sorted(world.endpoints, key=lambda e: e.id)
        if endpoint.settings.is_async
    )


def _async_endpoint(
    endpoint: Endpoint,
    version: Version | None,
    addresses: Callable[[Version], tuple[str, ...]],
    tokens: str,
    token: str,
) -> AsyncEndpoint:
    stopped = endpoint.target is Target.STOPPED
    current = None if stopped else version
    settings = endpoint.settings if version is None else version.settings
    return AsyncEndpoint(
        endpoint.id,
        tokens,
        token,
        stopped=stopped,
        version=current.number if current else None,
        addresses=addresses(current) if current else (),
        limit=settings.workers * settings.threads,
        timeout_s=settings.async_timeout_s,
        keep_s=settings.async_keep_s,
        drain_s=endpoint.settings.drain_s,
        max_attempts=settings.async_max_attempts,
        max_queued=settings.async_max_queued,
    )
