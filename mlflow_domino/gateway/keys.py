"""The gateway's own tokens, one for each endpoint, as files that its application reads.

They come from a Secret, through the API: the kubelet would take more than a minute to bring a new endpoint's.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from pathlib import Path

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import DominoError
from mlflow_domino.home import write_text
from mlflow_domino.labels import GATEWAY_TOKENS
from mlflow_domino.models import valid_id

__all__ = ["Keys"]


class Keys:
    """Keeps a folder with a file of mode 0600 for each endpoint.

    Parameters
    ----------
    cluster : Cluster
        Which lets us read that Secret, and no other.
    folder : Path
    say : callable
        Gets each new reason why it cannot be read.
    """

    def __init__(self, cluster: Cluster, folder: Path, say: Callable[[str], object]) -> None:
        self._cluster = cluster
        self._folder = folder
        self._say = say
        self._told = ""
        self._known: set[str] = set()

    def fetch(self, endpoints: Iterable[str]) -> bool:
        """Have the token of each of these endpoints, and of no other; false when one is not there yet."""
        wanted = set(endpoints)
        for gone in self._known - wanted:
            (self._folder / gone).unlink(missing_ok=True)
        self._known &= wanted
        if wanted - self._known:
            try:
                secret = self._cluster.get("Secret", GATEWAY_TOKENS) or {}
            except DominoError as error:
                if str(error) != self._told:
                    self._told = str(error)
                    self._say(f"metrics of new endpoints cannot be collected: {error}")
                return False
            for name, value in (secret.get("data") or {}).items():
                if name in wanted and valid_id(name):
                    write_text(self._folder / name, base64.b64decode(value).decode("ascii"))
                    self._known.add(name)
        return wanted == self._known
