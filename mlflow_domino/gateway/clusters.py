"""Envoy's clusters: the replicas of a version, and how Envoy chooses among them."""

from __future__ import annotations

import ipaddress
from typing import Any

from mlflow_domino.gateway.routes import Cluster, is_path

__all__ = ["application_cluster", "version_cluster"]

_TYPE = "type.googleapis.com/envoy."
_UNLIMITED = 1 << 24
#: Requests that may well arrive within the same millisecond.
_AT_ONCE = 16


def _endpoint(address: str) -> dict[str, Any]:
    if is_path(address):
        where: dict[str, Any] = {"pipe": {"path": address}}
    else:
        host, _, port = address.rpartition(":")
        where = {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
    return {"endpoint": {"address": where}}


def _is_name(address: str) -> bool:
    if is_path(address):
        return False
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return True
    return False


def _base_cluster(name: str, addresses: tuple[str, ...], connections: int, pending: int) -> dict[str, Any]:
    """Return a cluster whose hosts get at most `connections` each, while at most `pending` requests wait for one."""
    limits = {"max_connections": _UNLIMITED, "max_requests": _UNLIMITED, "max_retries": _UNLIMITED}
    options = {
        "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        # uWSGI closes each connection after its answer; a second request on it would be lost now and then.
        # A connection whose caller has gone by the time that it stands must not keep one of uWSGI's threads waiting.
        "common_http_protocol_options": {"max_requests_per_connection": 1, "idle_timeout": "0.100s"},
    }
    return {
        "name": name,
        "type": "STRICT_DNS" if any(map(_is_name, addresses)) else "STATIC",
        "dns_lookup_family": "V4_PREFERRED",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [_endpoint(a) for a in addresses]}]},
        "circuit_breakers": {
            "thresholds": [{**limits, "max_pending_requests": pending}],
            "per_host_thresholds": [{"max_connections": connections}],
        },
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }


def application_cluster(name: str, address: str) -> dict[str, Any]:
    return _base_cluster(name, (address,), connections=64, pending=64)


def version_cluster(cluster: Cluster) -> dict[str, Any]:
    rendered = {
        "@type": _TYPE + "config.cluster.v3.Cluster",
        **_base_cluster(cluster.name, cluster.addresses, *_limits(cluster)),
        "lb_policy": "LEAST_REQUEST",
        "ignore_health_on_host_removal": True,
    }
    if cluster.health_check:
        # Only what is ready gets requests: 503 is better than a place in the queue of a model that still loads.
        watched = {"health_checks": [_health_check()], "common_lb_config": {"healthy_panic_threshold": {"value": 0}}}
    else:
        # When no replica seems to live, all are tried: they may be back before Envoy looks again.
        panic = {"healthy_panic_threshold": {"value": 1}}
        watched = {"outlier_detection": _outlier_detection(), "common_lb_config": panic}
    return {**rendered, **watched}


def _limits(cluster: Cluster) -> tuple[int, int]:
    """Return how many connections a replica gets, and how many requests wait in Envoy.

    Together they are `max_requests`. What a replica runs, and some more so that it need not wait for the next, is at
    the replica; the rest of the queue is here, where it is not lost with the replica. Each request waits here for a
    moment while its connection is made, so that there must be room for those that come at once: where the queue is
    too short for that, it is a little longer than it should be. (Envoy's own limit of requests would not do: it counts
    when the connection stands, and what it refuses leaves connections behind that fill uWSGI's queue.)

    Several gateways do not know of each other's requests: together they must not fill a replica's queue, of which each
    gets a part, and no part is smaller than what the replica runs.
    """
    replicas = len(cluster.addresses)
    each = cluster.max_requests // replicas
    waiting = max((each - cluster.concurrency) // 2, min(cluster.concurrency, _AT_ONCE), 1)
    return max(cluster.concurrency, (each - waiting) // cluster.gateways), waiting * replicas


def _outlier_detection() -> dict[str, Any]:
    """Two failures to connect in a row put a replica aside for a second; no answer of a model's ever does.

    Envoy counts a request over its time limit as such a failure, so that one failure must not suffice: a single slow
    request would double the load of the other replicas.
    """
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 2,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "interval": "1s",
        "base_ejection_time": "1s",
        "max_ejection_time": "3s",
        "max_ejection_percent": 100,
    }


def _health_check() -> dict[str, Any]:
    """Ask every second. A replica that is busy answers when it is free: only one that cannot be reached is put aside."""
    return {
        "timeout": "3600s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "healthy_threshold": 1,
        "unhealthy_threshold": 2,
        "http_health_check": {"path": "/ready"},
    }
