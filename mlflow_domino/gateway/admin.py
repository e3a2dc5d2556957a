"""Envoy's admin interface, on its Unix socket: what it says about itself."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Any

from mlflow_domino.errors import GatewayFailed
from mlflow_domino.gateway.pipe import fetch

__all__ = ["Admin"]


class Admin:
    """Reads statistics of the Envoy whose admin socket this is."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    def get(self, target: str, *, method: str = "GET") -> bytes:
        """Return the body of an answer; with POST, have Envoy do something.

        Raises
        ------
        GatewayFailed
            Envoy does not answer, or not with 200.
        """
        try:
            status, body = fetch(self._socket, target, method=method)
        except OSError as error:
            raise GatewayFailed(f"Envoy's admin interface does not answer: {error}.") from error
        if status != 200:
            raise GatewayFailed(f"Envoy's admin interface answers {status} to {target}.")
        return body

    def statistics(self, pattern: str) -> dict[str, Any]:
        """Return counters, gauges and texts whose names match an expression (RE2).

        Raises
        ------
        GatewayFailed
            Envoy does not answer.
        """
        query = urllib.parse.urlencode({"format": "json", "filter": pattern})
        found = json.loads(self.get(f"/stats?{query}"))["stats"]
        return {one["name"]: one["value"] for one in found if "name" in one}

    def exposition(self, pattern: str) -> str:
        """Return statistics whose names match an expression, in the format of Prometheus.

        Raises
        ------
        GatewayFailed
            Envoy does not answer.
        """
        query = urllib.parse.urlencode({"filter": pattern})
        return self.get(f"/stats/prometheus?{query}").decode("utf-8")
