"""What is wrong with a request, all of it, in words."""

from __future__ import annotations

import json
from typing import Any

from .errors import InvalidInput

__all__ = ["Mismatch", "Problems", "Unknown", "joined", "show"]

_MOST_PROBLEMS = 25


class Mismatch(Exception):
    """One value that does not fit; its text continues a sentence that began with the value's place."""


class Unknown(Exception):
    """A type that is not in this module: MLflow's own enforcement has to do."""


class Problems:
    """Everything that is wrong with one request."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._more = 0

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, place: str, text: str) -> None:
        if len(self._found) < _MOST_PROBLEMS:
            self._found.append(f"{place}: {text}" if place else text)
        else:
            self._more += 1

    def raise_if_any(self) -> None:
        """Refuse the request, naming them all.

        Raises
        ------
        InvalidInput
        """
        if self._found:
            more = f"; and {self._more} more" if self._more else ""
            raise InvalidInput("; ".join(self._found) + more, code="SCHEMA_MISMATCH")


def show(value: Any) -> str:
    """Return a value as the caller wrote it, in a length fit for a message."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def joined(found: list[str], limit: int = 5) -> str:
    shown = ", ".join(found[:limit])
    return f"{shown} and {len(found) - limit} more" if len(found) > limit else shown
