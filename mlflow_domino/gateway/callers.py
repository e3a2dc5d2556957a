"""Who calls the gateway's own application: tokens in headers, checked in constant time."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import os
from pathlib import Path

from mlflow_domino.secret import digest

__all__ = ["Callers", "carries", "presented"]


def presented(header: str) -> str | None:
    """Return the token of a Bearer header, or of a Basic one that has it as user and as password."""
    scheme, _, value = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            user, _, password = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")
            return user if hmac.compare_digest(user.encode(), password.encode()) else None
    return None


def carries(header: str, token_file: Path) -> bool:
    """Whether a header carries the token in a file; without a token in it, none does."""
    try:
        token = token_file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return False
    shown = presented(header)
    return bool(token) and shown is not None and hmac.compare_digest(shown.encode(), token.encode())


class Callers:
    """Callers of endpoints, by the files with the digests of their tokens; each is read again when it changes."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int, int], tuple[str, ...]]] = {}

    def admits(self, header: str, tokens_file: str) -> bool:
        """Whether a header carries one of the tokens; where the file cannot be read, none does."""
        shown = presented(header)
        if not shown:
            return False
        wanted = digest(shown)
        # All of them, so that the time does not tell which one is near.
        return sum(hmac.compare_digest(wanted, known) for known in self._digests(tokens_file)) > 0

    def _digests(self, path: str) -> tuple[str, ...]:
        try:
            found = os.stat(path)
            state = (found.st_mtime_ns, found.st_ino, found.st_size)
            known = self._known.get(path)
            if known is None or known[0] != state:
                document = json.loads(Path(path).read_bytes())
                known = self._known[path] = state, tuple(str(one["sha256"]) for one in document["tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            return ()
        return known[1]
