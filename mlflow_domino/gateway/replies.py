"""The answers that Envoy gives by itself, in the shape of the harness's: ``{"error": {code, message, request_id}}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: Name of a route's metadata, from which both the deadline and the texts below are made.
METADATA = "envoy.filters.http.lua"
#: What Domino's own endpoints answer to browsers, as the harness does.
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST",
    "access-control-allow-headers": "authorization,content-type",
}
_BODY = "%LOCAL_REPLY_BODY%"
_TIMEOUT = f"%METADATA(ROUTE:{METADATA}:timeout)%"
_MAX_BODY = f"%METADATA(ROUTE:{METADATA}:max_body)%"
#: Envoy's flags, https://www.envoyproxy.io/docs/envoy/latest/configuration/advanced/substitution_formatter
_OVERFLOW = ("UO",)
_OVERDUE = ("UT", "SI", "DT")
_UNREACHABLE = ("UF", "UH", "NC", "NFCF")
_LOST = ("UC", "UR", "UPE", "URX")


def added_headers(headers: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return headers as Envoy adds them, each in place of any that is there already."""
    return [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]


def local_replies(headers_kib: int) -> dict[str, Any]:
    """Return the listener's ``local_reply_config``; the first mapper that fits an answer gives it its text."""
    by_flag = [
        _by_flags(_OVERFLOW, 429, "TOO_MANY_REQUESTS", "every replica is busy and the queue is full; try again", "1"),
        _by_flags(
            _OVERDUE, 504, "TIMEOUT", f"there was no answer within {_TIMEOUT} s, the endpoint's request_timeout_s"
        ),
        _by_flags(_UNREACHABLE, 503, "NOT_READY", "no replica of the endpoint can be reached; try again later", "1"),
        _by_flags(_LOST, 503, "REPLICA_LOST", "the replica ended before it had answered; the request may have run"),
    ]
    by_status = [
        _by_status(400, "BAD_REQUEST", "the request is no valid HTTP, or its path is not plain"),
        _by_status(404, "NOT_FOUND", _BODY),
        _by_status(408, "REQUEST_TIMEOUT", "the request did not arrive in time"),
        _by_status(413, "PAYLOAD_TOO_LARGE", f"the body is larger than {_MAX_BODY} bytes, the endpoint's max_body"),
        _by_status(414, "URI_TOO_LONG", _BODY),
        _by_status(431, "HEADERS_TOO_LARGE", f"the headers are larger than {headers_kib} KiB, or more than 100"),
        _by_status(503, "NOT_READY", _BODY),
    ]
    other = _mapper({"status_code_filter": _comparison("GE", 400)}, None, "GATEWAY_ERROR", _BODY)
    return {"mappers": [*by_flag, *by_status, other]}


def _comparison(operator: str, status: int) -> dict[str, Any]:
    return {"comparison": {"op": operator, "value": {"default_value": status, "runtime_key": "none"}}}


def _by_flags(flags: Iterable[str], status: int, code: str, message: str, retry_after: str = "") -> dict[str, Any]:
    return _mapper({"response_flag_filter": {"flags": list(flags)}}, status, code, message, retry_after)


def _by_status(status: int, code: str, message: str) -> dict[str, Any]:
    return _mapper({"status_code_filter": _comparison("EQ", status)}, None, code, message)


def _mapper(
    condition: Mapping[str, Any], status: int | None, code: str, message: str, retry_after: str = ""
) -> dict[str, Any]:
    headers = {**CORS, **({"retry-after": retry_after} if retry_after else {})}
    error = {"code": code, "message": message, "request_id": "%REQ(X-REQUEST-ID)%"}
    return {
        "filter": condition,
        **({} if status is None else {"status_code": status}),
        "headers_to_add": added_headers(headers),
        "body_format_override": {"json_format": {"error": error}, "content_type": "application/json"},
    }
