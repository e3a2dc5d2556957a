"""Envoy's configuration (xDS version 3, as JSON) as a pure function of where the gateway listens and what it routes.

Everything dynamic comes from files: the listener, the clusters, the routes, the certificate. A version is a cluster,
named by its id; an endpoint's label is three routes: model, invocations, openapi.json. Any other path goes to the
gateway's own application.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow_domino.gateway.clusters import application_cluster, version_cluster
from mlflow_domino.gateway.entry import Entry
from mlflow_domino.gateway.replies import CORS, METADATA, added_headers, local_replies
from mlflow_domino.gateway.routes import REASONS, Cluster, Route, RouteTable

__all__ = [
    "APPLICATION",
    "MODEL_PATHS",
    "ROUTES",
    "UPLOAD_LIMIT_S",
    "Entry",
    "bootstrap",
    "certificate",
    "clusters",
    "discovery",
    "listener",
    "routes",
]

#: What of a replica callers reach, besides nothing.
MODEL_PATHS = ("model", "invocations", "openapi.json")
#: Names: of the application's cluster, of the route configuration, of the certificate.
APPLICATION = "application"
ROUTES = "models"
CERTIFICATE = "certificate"
#: Time that a caller has to send a request whole.
UPLOAD_LIMIT_S = 300
#: uWSGI refuses a request whose variables take more than 65,535 bytes; it holds a path two or three times.
_HEADERS_KIB = 48
_PATH_LIMIT = 4096
_APPLICATION_TIMEOUT_S = 60.0
_APPLICATION_MAX_BODY = 1 << 20
_RETRIES = 3
#: Of callers; each may need another to a replica, and most systems allow a process some 20,000 and more.
_CONNECTIONS = 8192
_TYPE = "type.googleapis.com/envoy."
_HTTP = _TYPE + "extensions.filters.http."

# Runs when the body is complete, which is when Envoy starts to count the route's timeout.
_SET_DEADLINE = f"""
function envoy_on_request(handle)
  local headers = handle:headers()
  if #headers:get(":path") > {_PATH_LIMIT} then
    handle:respond({{[":status"] = "414"}}, "the path and query are longer than {_PATH_LIMIT} bytes")
    return
  end
  local timeout_ms = handle:metadata():get("timeout_ms")
  if timeout_ms then
    headers:replace("x-domino-deadline-ms", string.format("%.0f", handle:timestamp() + timeout_ms))
  end
end
"""
# Sixteen digits, the shape of Domino's request ids: the microsecond in which the request began.
_REQUEST_ID = "%START_TIME(%s%6f)%"


def discovery(version: str, resources: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of a file that Envoy watches; `version` is what it shows once it has accepted it."""
    return {"version_info": version, "resources": list(resources)}


def bootstrap(entry: Entry) -> dict[str, Any]:
    """Return what Envoy is started with: its admin interface, on a Unix socket only, and where the rest is read."""
    admin_paths = ("/ready", "/stats", "/listeners", "/clusters", "/server_info", "/healthcheck/fail")
    return {
        "node": {"id": "gateway", "cluster": "mlflow-domino"},
        "admin": {
            "address": {"pipe": {"path": str(entry.admin_socket), "mode": 0o600}},
            "allow_paths": [{"prefix": path} for path in admin_paths],
        },
        "static_resources": {"clusters": [application_cluster(APPLICATION, entry.application)]},
        "overload_manager": {"resource_monitors": [_connection_limit()]},
        "dynamic_resources": {"lds_config": _source(entry.listener_file), "cds_config": _source(entry.clusters_file)},
    }


def certificate(chain: str, key: str) -> dict[str, Any]:
    """Return the listener's certificate as a resource; both in one file, so that they never differ."""
    return {
        "@type": _TYPE + "extensions.transport_sockets.tls.v3.Secret",
        "name": CERTIFICATE,
        "tls_certificate": {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}},
    }


def listener(entry: Entry) -> dict[str, Any]:
    """Return the listener as a resource."""
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": _http(entry)}]}
    if entry.tls:
        chain["transport_socket"] = {"name": "tls", "typed_config": _downstream_tls(entry)}
    return {
        "@type": _TYPE + "config.listener.v3.Listener",
        "name": "gateway",
        "address": {"socket_address": {"address": entry.host, "port_value": entry.port}},
        # Otherwise a second Envoy of the same user would share the port and take half of the requests.
        "enable_reuse_port": False,
        "filter_chains": [chain],
    }


def clusters(present: Iterable[Cluster]) -> list[dict[str, Any]]:
    """Return clusters as resources, in the order of their names."""
    return [version_cluster(c) for c in sorted(present, key=lambda c: c.name)]


def routes(table: RouteTable) -> dict[str, Any]:
    """Return the table's routes as one resource."""
    rules = [_preflight()]
    for route in sorted(table.routes, key=lambda r: (r.endpoint_id, r.label)):
        rules += [_rule(route, path) for path in MODEL_PATHS]
    rules += [_unknown_model(), _everything_else()]
    return {
        "@type": _TYPE + "config.route.v3.RouteConfiguration",
        "name": ROUTES,
        "virtual_hosts": [
            {
                "name": ROUTES,
                "domains": ["*"],
                "routes": rules,
                "request_headers_to_remove": ["x-envoy-internal"],
                "response_headers_to_add": added_headers(CORS),
                "retry_policy": _retry_policy(),
            }
        ],
    }


def _source(path: Path) -> dict[str, Any]:
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": str(path), "watched_directory": {"path": str(path.parent)}},
    }


def _duration(seconds: float) -> str:
    """Round up to milliseconds: a timeout of nothing would mean none."""
    return f"{math.ceil(seconds * 1000) / 1000:.3f}s"


def _connection_limit() -> dict[str, Any]:
    limit = _TYPE + "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    return {
        "name": "envoy.resource_monitors.global_downstream_max_connections",
        "typed_config": {"@type": limit, "max_active_downstream_connections": _CONNECTIONS},
    }


# The listener.


def _http(entry: Entry) -> dict[str, Any]:
    return {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "rds": {"route_config_name": ROUTES, "config_source": _source(entry.routes_file)},
        "http_filters": [
            # The buffer filter counts the body before anything else sees it, sets Content-Length, which uWSGI wants,
            # and keeps slow uploads off the replicas' threads.
            _filter("envoy.filters.http.buffer", "buffer.v3.Buffer", max_request_bytes=_APPLICATION_MAX_BODY),
            _filter(METADATA, "lua.v3.Lua", default_source_code={"inline_string": _SET_DEADLINE}),
            _filter("envoy.filters.http.router", "router.v3.Router", suppress_envoy_headers=True),
        ],
        "local_reply_config": local_replies(_HEADERS_KIB),
        **_trust(),
        **_limits(),
    }


def _filter(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": _HTTP + kind, **settings}}


def _trust() -> dict[str, Any]:
    """Nothing that a caller sends steers the gateway, nor passes for something that the gateway says."""
    forged = [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ("x-envoy-", "x-domino-")]
    mutation = {
        "@type": _TYPE + "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [*forged, *({"append": header} for header in added_headers({"x-request-id": _REQUEST_ID}))],
    }
    return {
        "early_header_mutation_extensions": [{"name": "forged-headers", "typed_config": mutation}],
        "use_remote_address": True,
        "internal_address_config": {"unix_sockets": False},
        "preserve_external_request_id": True,  # it is ours by then
        "always_set_request_id_in_response": True,
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
    }


def _limits() -> dict[str, Any]:
    return {
        "max_request_headers_kb": _HEADERS_KIB,
        "request_headers_timeout": "30s",
        "request_timeout": _duration(UPLOAD_LIMIT_S),
        # Routes have their own, so that a request may take longer than Envoy's default of five minutes.
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": {
            "idle_timeout": "300s",
            # WSGI cannot tell x_domino_deadline_ms from x-domino-deadline-ms.
            "headers_with_underscores_action": "DROP_HEADER",
        },
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "gateway"},
        "http2_protocol_options": {
            "max_concurrent_streams": 128,
            "initial_stream_window_size": 1 << 18,
            "initial_connection_window_size": 1 << 20,
        },
    }


def _downstream_tls(entry: Entry) -> dict[str, Any]:
    return {
        "@type": _TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "tls_certificate_sds_secret_configs": [
                {"name": CERTIFICATE, "sds_config": _source(entry.certificate_file)}
            ],
        },
    }


# Routes.


def _retry_policy() -> dict[str, Any]:
    """Try again only where no byte reached the model, and elsewhere."""
    return {
        "retry_on": "connect-failure,reset-before-request",
        "num_retries": _RETRIES,
        "retry_host_predicate": [
            {
                "name": "previous_hosts",
                "typed_config": {
                    "@type": _TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                },
            }
        ],
        # The replica that just failed has the fewest requests, so that it is drawn most often.
        "host_selection_retry_max_attempts": 20,
        "retry_back_off": {"base_interval": "0.010s", "max_interval": "0.100s"},
    }


def _forward(cluster: str, timeout_s: float) -> dict[str, Any]:
    # Envoy restarts the idle timeout with each byte, so that it never fires before the other.
    return {"cluster": cluster, "timeout": _duration(timeout_s), "idle_timeout": _duration(timeout_s + UPLOAD_LIMIT_S)}


def _metadata(timeout_s: float, max_body: int) -> dict[str, Any]:
    values = {"timeout": f"{timeout_s:g}", "timeout_ms": math.ceil(timeout_s * 1000), "max_body": str(max_body)}
    return {"filter_metadata": {METADATA: values}}


def _rule(route: Route, path: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"match": {"path": f"/models/{route.endpoint_id}/{route.label}/{path}"}}
    if route.cluster is None:
        return {**rule, **_refuse(503, REASONS[route.reason])}
    buffer = {"@type": _HTTP + "buffer.v3.BufferPerRoute", "buffer": {"max_request_bytes": route.max_body}}
    return {
        **rule,
        "route": {**_forward(route.cluster, route.timeout_s), "prefix_rewrite": f"/{path}"},
        "stat_prefix": f"{route.endpoint_id}_{route.label.replace('/', '_')}",
        "metadata": _metadata(route.timeout_s, route.max_body),
        "typed_per_filter_config": {"envoy.filters.http.buffer": buffer},
    }


def _refuse(status: int, message: str) -> dict[str, Any]:
    return {
        "direct_response": {"status": status, "body": {"inline_string": message}},
        "typed_per_filter_config": {
            "envoy.filters.http.buffer": {"@type": _HTTP + "buffer.v3.BufferPerRoute", "disabled": True}
        },
    }


def _preflight() -> dict[str, Any]:
    """Browsers ask before they call, without a token."""
    options = {"name": ":method", "string_match": {"exact": "OPTIONS"}}
    return {"match": {"prefix": "/models/", "headers": [options]}, "direct_response": {"status": 204}}


def _unknown_model() -> dict[str, Any]:
    message = "there is no such endpoint, or no such route of it"
    return {"match": {"prefix": "/models/"}, **_refuse(404, message)}


def _everything_else() -> dict[str, Any]:
    return {
        "match": {"prefix": "/"},
        "route": _forward(APPLICATION, _APPLICATION_TIMEOUT_S),
        "metadata": _metadata(_APPLICATION_TIMEOUT_S, _APPLICATION_MAX_BODY),
    }
