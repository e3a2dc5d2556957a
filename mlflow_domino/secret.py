"""Secrets: tokens, and documents with variables and index URLs, on this machine in files of mode 0600."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets as random
import string
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_domino.config import Secrets
from mlflow_domino.home import Home, read_json, write_json, write_text

__all__ = [
    "digest",
    "hidden",
    "load",
    "new_token",
    "of_document",
    "proxies",
    "read_caller",
    "save",
    "to_document",
    "write_caller",
]

_ALPHABET = string.ascii_letters + string.digits


def new_token() -> str:
    """Return a new token: 64 letters and digits, the shape of Domino's, 381 random bits."""
    return "".join(random.choice(_ALPHABET) for _ in range(64))


def digest(token: str) -> str:
    """Return the SHA-256 of a token, the only thing of it that is kept. Random bits need no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def to_document(secrets: Secrets) -> dict[str, Any]:
    """Return secrets as they are written down, wherever that is."""
    return {
        "variables": dict(secrets.variables),
        "index_url": secrets.index_url,
        "extra_index_url": list(secrets.extra_index_url),
    }


def of_document(document: Mapping[str, Any]) -> Secrets:
    """Read what `to_document` returned."""
    return Secrets(
        variables=document.get("variables", {}),
        index_url=document.get("index_url", ""),
        extra_index_url=tuple(document.get("extra_index_url", ())),
    )


def hidden(secrets: Secrets) -> Secrets:
    """Return secrets to be shown: which there are, without any value."""
    variables = dict.fromkeys(secrets.variables, "…")
    return Secrets(variables, "…" if secrets.index_url else "", ("…",) * len(secrets.extra_index_url))


def save(path: Path, secrets: Secrets) -> None:
    write_json(path, to_document(secrets))


def load(path: Path) -> Secrets:
    """Read what `save` wrote; no file means no secrets."""
    return of_document(read_json(path) or {})


def write_caller(home: Home, endpoint_id: str, token: str) -> None:
    """Keep the token of whoever created the endpoint, so that `predict` finds it by itself."""
    write_text(home.caller_token(endpoint_id), json.dumps(token))


def read_caller(home: Home, endpoint_id: str) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        token: str = json.loads(home.caller_token(endpoint_id).read_text())
        return token
    return None


def proxies(url: str) -> dict[str, str] | None:
    """Return what `requests` is to know of proxies, which can neither reach this machine nor should see its tokens."""
    return {"no_proxy": "*"} if urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "::1") else None
