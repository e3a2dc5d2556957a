"""What a Kubernetes API server says when it does not do what it was asked, as our errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from mlflow_domino.dialect import Kind
from mlflow_domino.errors import (
    AlreadyExists,
    Conflict,
    DominoError,
    Expired,
    Failed,
    Forbidden,
    InvalidInput,
    NotFound,
    Unavailable,
    Unreachable,
)

__all__ = ["LESS", "QUOTA", "Call", "refusal", "said", "unreachable"]

#: What a server says where a quota is used up, and the ways out.
QUOTA = "exceeded quota"
LESS = "ask for less (replicas, hardware_tier), delete what is not needed, or have an administrator raise the quota"


@dataclass(frozen=True)
class Call:
    """What was asked of a cluster, in words for a person.

    Attributes
    ----------
    cluster : str
        ``the cluster 'prod' (https://…)``.
    namespace : str
    verb : str
        As rights name it: get, list, watch, create, update, patch, delete.
    kind : Kind or None
    name, subresource : str
        Empty where there is none.
    """

    cluster: str
    namespace: str
    verb: str
    kind: Kind | None = None
    name: str = ""
    subresource: str = ""

    @property
    def resource(self) -> str:
        if self.kind is None:
            return "the API"
        return f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural

    @property
    def thing(self) -> str:
        kind = self.kind.name if self.kind else "object"
        return f"{kind} {self.name!r}" if self.name else f"{kind}s"

    @property
    def secret(self) -> bool:
        """Whether the server's words may repeat what must not be shown."""
        return self.kind is not None and self.kind.name == "Secret"


def said(body: bytes | str | None) -> dict[str, Any] | None:
    """Return the server's own answer, None where the body is somebody else's (a proxy's, a pod's)."""
    try:
        document = json.loads(body or b"")
    except ValueError:
        return None
    own = isinstance(document, dict) and document.get("kind") == "Status" and document.get("apiVersion") == "v1"
    return document if own else None


def refusal(call: Call, code: int, body: bytes | str | None) -> DominoError:
    """Return the error for an answer that is none of 2xx."""
    status = said(body) or {}
    reason, words = str(status.get("reason", "")), _words(call, status)
    if code == 401:
        return Forbidden(f"{_first(call.cluster)} does not accept your credentials (401). Sign in to it again.")
    if code == 403:
        return _forbidden(call, words)
    if code == 404:
        return _not_found(call, status)
    if code == 409:
        if reason == "AlreadyExists":
            return AlreadyExists(f"{call.thing} exists already in the namespace {call.namespace!r} of {call.cluster}.")
        return Conflict(f"Somebody else changed {call.thing} meanwhile; look at it and try again.")
    if code == 410:
        return Expired(f"{_first(call.cluster)} does not remember that far back; {call.resource} must be listed again.")
    if code in (400, 413, 422):
        return InvalidInput(f"{_first(call.cluster)} refuses to {call.verb} {call.thing}: {words}.")
    if code == 429 or code in (502, 503, 504):
        return Unavailable(f"{_first(call.cluster)} is too busy or starting ({code}): {words}. Try again later.")
    return Failed(f"{_first(call.cluster)} failed to {call.verb} {call.thing} ({code}): {words}.")


def unreachable(call: Call, error: Exception, *, written: bool) -> Unreachable:
    """Return the error for a server that gave no answer.

    Parameters
    ----------
    written : bool
        Whether it may have done all the same what it was asked.
    """
    doubt = " Whether it was done is not known." if written else ""
    return Unreachable(f"{_first(call.cluster)} does not answer: {_why(error)}.{doubt} Try again when it does.")


def _forbidden(call: Call, words: str) -> Forbidden:
    if not re.search(r"\bcannot \w+ resource\b", words):  # a quota, or an admission rule
        way_out = f" {_first(LESS)}." if QUOTA in words else ""
        return Forbidden(f"{_first(call.cluster)} refuses to {call.verb} {call.thing}: {words}.{way_out}")
    group = call.kind.group if call.kind else ""
    return Forbidden(
        f"You have no right to {call.verb} {call.resource} in the namespace {call.namespace!r} of {call.cluster}. An "
        f"administrator grants it in a Role: apiGroups [{group!r}], resources [{call.resource!r}], verbs "
        f"[{call.verb!r}]. The server says: {words}."
    )


def _not_found(call: Call, status: dict[str, Any]) -> NotFound:
    if (status.get("details") or {}).get("kind") == "namespaces":
        return NotFound(
            f"There is no namespace {call.namespace!r} in {call.cluster}; an administrator makes it with "
            f"`kubectl create namespace {call.namespace}`."
        )
    return NotFound(f"There is no {call.thing} in the namespace {call.namespace!r} of {call.cluster}.")


def _words(call: Call, status: dict[str, Any]) -> str:
    """Return the server's words, of Secrets only the fields that it names: the rest may quote values."""
    if not call.secret:
        return str(status.get("message") or "it does not say why").rstrip(". ")
    causes = (status.get("details") or {}).get("causes") or ()
    fields = ", ".join(str(cause.get("field")) for cause in causes)
    message = str(status.get("message") or "")
    if status.get("reason") == "Forbidden":
        return message.rstrip(". ")
    return f"{status.get('reason') or 'it does not say why'}{f' ({fields})' if fields else ''}"


def _why(error: Exception) -> str:
    name, text = type(error).__name__, str(getattr(error, "reason", None) or error)
    if name == "ConnectTimeoutError":
        return "no connection in time"
    if name == "ReadTimeoutError":
        return "no answer in time"
    if "CERTIFICATE" in text or "SSL" in text:
        return f"TLS failed ({text.splitlines()[-1][:200]})"
    found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    return found[1].strip().lower() if found else text[:200]


def _first(text: str) -> str:
    return text[:1].upper() + text[1:]
