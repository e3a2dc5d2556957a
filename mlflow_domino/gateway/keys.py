"""Tokens of endpoints, as files that the gateway's application and its dispatcher read: its own, and digests of callers'.

They come from a Secret, through the API: the kubelet would take more than a minute to bring a new one.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Set
from pathlib import Path

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import DominoError
from mlflow_domino.home import write_text
from mlflow_domino.labels import GATEWAY_TOKENS, digests_key
from mlflow_domino.models import valid_id

__all__ = ["Keys"]


class Keys:
    """Keeps a folder with files of mode 0600 for each endpoint.

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
        self._read = -1

    def own(self, endpoint_id: str) -> Path:
        """Return the file with the gateway's own token for an endpoint."""
        return self._folder / endpoint_id

    def callers(self, endpoint_id: str) -> Path:
        """Return the file with the digests of the tokens of an asynchronous endpoint's callers."""
        return self._folder / digests_key(endpoint_id)

    def current(self, generation: int) -> bool:
        """Whether callers' tokens are known as they were written before a generation."""
        return self._read >= generation

    def fetch(self, endpoints: Iterable[str], asynchronous: Set[str], generation: int) -> bool:
        """Have the files of these endpoints, and of no other; false when one is not there yet.

        Parameters
        ----------
        asynchronous : set of str
            Endpoints whose callers come to the gateway's own application.
        generation : int
            What was written before it is read.
        """
        wanted = {*endpoints, *map(digests_key, asynchronous)}
        self._keep(self._known & wanted)
        if wanted - self._known or (asynchronous and not self.current(generation)):
            try:
                secret = self._cluster.get("Secret", GATEWAY_TOKENS) or {}
            except DominoError as error:
                if str(error) != self._told:
                    self._told = str(error)
                    self._say(f"the tokens of endpoints cannot be read: {error}")
                return False
            found = {name: value for name, value in (secret.get("data") or {}).items() if name in wanted}
            self._keep(self._known & found.keys())
            for name, value in found.items():
                if valid_id(name.partition(".")[0]):
                    # What somebody wrote there by hand costs that endpoint its token, and nobody else's routes.
                    content = base64.b64decode(value).decode("ascii", "ignore")
                    write_text(self._folder / name, content)
                    self._known.add(name)
            self._read = generation
        return wanted == self._known

    def _keep(self, names: set[str]) -> None:
        for gone in self._known - names:
            (self._folder / gone).unlink(missing_ok=True)
        self._known = names
