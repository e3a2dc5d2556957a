"""What was last seen of a data plane that keeps its own records: that is told when the data plane does not answer."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_domino.home import Home, read_json, write_json
from mlflow_domino.models import Endpoint, Version
from mlflow_domino.written import endpoint_of, to_text, version_of

__all__ = ["Memory", "Seen"]

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Seen:
    """An endpoint as it was when it was last seen.

    Attributes
    ----------
    when : str
        In UTC, for a person.
    """

    endpoint: Endpoint
    versions: tuple[Version, ...]
    url: str
    when: str


class Memory:
    """A file of a home, one for each data plane; nothing in it is secret.

    Parameters
    ----------
    home : Home
    plane : str
        Name of the data plane.
    """

    def __init__(self, home: Home, plane: str) -> None:
        self._path = home.root / "seen" / f"{plane}.json"

    def keep(self, seen: Sequence[tuple[Endpoint, Sequence[Version], str]], *, all_of_them: bool) -> None:
        """Write down endpoints with their versions and URLs: beside those that are known, or in their place."""
        known = {} if all_of_them else dict(self._read())
        for endpoint, versions, url in seen:
            known[endpoint.id] = {
                "endpoint": to_text(endpoint),
                "versions": [to_text(version) for version in versions],
                "url": url,
                "seen_s": int(time.time()),
            }
        write_json(self._path, known)

    def forget(self, endpoint_id: str) -> None:
        known = dict(self._read())
        if known.pop(endpoint_id, None) is not None:
            write_json(self._path, known)

    def recall(self) -> list[Seen]:
        """Return what is known, in the order of the names; what another release wrote and this one cannot read is left out."""
        found = []
        for entry in self._read().values():
            try:
                when = datetime.datetime.fromtimestamp(entry["seen_s"], tz=datetime.timezone.utc)
                found.append(
                    Seen(
                        endpoint_of(entry["endpoint"], 0),
                        tuple(version_of(text, 0) for text in entry["versions"]),
                        str(entry["url"]),
                        f"{when:%Y-%m-%d %H:%M:%S} UTC",
                    )
                )
            except _UNREADABLE:
                continue
        return sorted(found, key=lambda seen: seen.endpoint.name)

    def _read(self) -> Mapping[str, Any]:
        try:
            known = read_json(self._path)
        except ValueError:
            return {}
        return known if isinstance(known, dict) else {}
