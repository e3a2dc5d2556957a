"""What callers of the asynchronous API send: bodies and headers, checked."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_domino.errors import InvalidInput
from mlflow_domino.gateway.webhook import is_public
from mlflow_domino.queue.prediction import PRIORITIES, Submission, Webhook

__all__ = ["LONGEST_WAIT_S", "Limits", "parse", "wait_of"]

#: The gateway gives a call of its own application a minute.
LONGEST_WAIT_S = 50.0
_OF_MODEL = ("parameters", "data")
_OF_QUEUE = ("priority", "max_time_in_queue_s", "webhook")
_NORMAL = 1
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What the endpoint and its data plane set.

    Attributes
    ----------
    keep_ms : int
        The longest time in the queue.
    private_webhooks : bool
        Whether webhooks may go to private addresses, and without TLS.
    """

    keep_ms: int
    private_webhooks: bool = False


def parse(endpoint_id: str, body: bytes, key: str | None, limits: Limits, *, at_ms: int) -> Submission:
    """Return what a body asks for.

    Raises
    ------
    InvalidInput
        Naming what is wrong.
    """
    document, text = _json(body)
    unknown = sorted(set(document) - {*_OF_MODEL, *_OF_QUEUE})
    if unknown:
        raise InvalidInput(
            f"unknown key {unknown[0][:60]!r}: parameters, priority, max_time_in_queue_s and webhook are known"
        )
    named = [name for name in _OF_MODEL if name in document]
    if len(named) != 1:
        raise InvalidInput('the body must be {"parameters": {name: value}}')
    if not isinstance(document[named[0]], dict if named[0] == "data" else dict | list):
        raise InvalidInput(f"{named[0]} must be an object, with a value for each name")
    # What the caller wrote goes to the model as it is; what is for the queue does not.
    request = text if len(document) == 1 else json.dumps({named[0]: document[named[0]]})
    return Submission(
        endpoint_id,
        request,
        deadline_ms=at_ms + _time_in_queue(document, limits),
        priority=_priority(document),
        key=_checked_key(key),
        digest=_digest(document) if key else "",
        webhook=_webhook(document, private=limits.private_webhooks),
    )


def wait_of(header: str) -> float:
    """Return for how many seconds a Prefer header wants to wait for the answer; 0 for not at all."""
    found = _WAIT.search(header)
    return min(float(found[1]), LONGEST_WAIT_S) if found else 0.0


def _json(body: bytes) -> tuple[Mapping[str, Any], str]:
    try:
        text = body.decode(json.detect_encoding(body))
        document = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInput('the body must be {"parameters": {name: value}}')
    return document, text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value; use null")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _time_in_queue(document: Mapping[str, Any], limits: Limits) -> int:
    seconds = document.get("max_time_in_queue_s")
    if seconds is None:
        return limits.keep_ms
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds * 1000 <= limits.keep_ms:
        raise InvalidInput(
            f"max_time_in_queue_s must be a number above 0, of at most {limits.keep_ms / 1000:g} (async_keep_s)"
        )
    return max(1, int(seconds * 1000))


def _priority(document: Mapping[str, Any]) -> int:
    priority = document.get("priority", _NORMAL)
    if priority is None:
        return _NORMAL
    if isinstance(priority, bool) or priority not in PRIORITIES:
        raise InvalidInput("priority must be 0 (first), 1 or 2")
    return int(priority)


def _checked_key(key: str | None) -> str:
    if key is None:
        return ""
    if not _KEY.fullmatch(key):
        raise InvalidInput("Idempotency-Key must be 1 to 255 printable characters of ASCII, without spaces")
    return key


def _digest(document: Mapping[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _webhook(document: Mapping[str, Any], *, private: bool) -> Webhook | None:
    told = document.get("webhook")
    if told is None:
        return None
    if isinstance(told, str):
        told = {"url": told}
    if not isinstance(told, dict) or not {"url"} <= set(told) <= {"url", "secret"}:
        raise InvalidInput('webhook must be a URL, or {"url": …, "secret": …}')
    url, secret = told["url"], told.get("secret") or ""
    if not isinstance(secret, str) or len(secret) > 1024:
        raise InvalidInput("webhook.secret must be text of at most 1024 characters")
    _check_url(url, private=private)
    return Webhook(url, secret)


def _check_url(url: Any, *, private: bool) -> None:
    """Refuse what is no URL, and what plainly leads to this network; names are resolved when they are called."""
    schemes = ("https", "http") if private else ("https",)
    if not isinstance(url, str) or not re.fullmatch(r"[\x21-\x7e]{1,2048}", url):
        raise InvalidInput("webhook.url must be a URL of at most 2048 characters of ASCII")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput(f"webhook.url is no URL: {error}") from None
    if parts.scheme not in schemes or not host:
        raise InvalidInput(f"webhook.url must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("webhook.url must have no user and password in it")
    if private:
        return
    try:
        public = is_public(host)
    except ValueError:
        public = host != "localhost" and not host.endswith(".localhost")
    if not public:
        raise InvalidInput("webhook.url leads to a private address; webhook_private of the data plane allows that")
