"""The Secret that the gateway's pods read as files: a token for whoever manages them, and where predictions are queued.

The queue's URL may hold a password: it is in the configuration of whoever declares the data plane, and in this Secret.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac

from mlflow_domino import secret
from mlflow_domino.cluster import Cluster
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.installation import gateway_secret
from mlflow_domino.data_planes.manifests import Place
from mlflow_domino.errors import AlreadyExists, Conflict
from mlflow_domino.home import Home
from mlflow_domino.labels import GATEWAY

__all__ = ["Vault"]

_TOKEN, _QUEUE = "management-token", "queue"


class Vault:
    """The gateway's Secret in a namespace.

    Parameters
    ----------
    cluster : Cluster
    declaration : Declaration
        Names the queue, where there is one.
    home : Home
        Has the configuration, which is named where it is wrong.
    """

    def __init__(self, cluster: Cluster, declaration: Declaration, home: Home) -> None:
        self._cluster = cluster
        self._declaration = declaration
        self._home = home

    def put(self) -> str:
        """Have the Secret be there, with the queue that the declaration names; one that others have set stays otherwise.

        Returns
        -------
        str
            Something that changes with the queue, and tells nothing of it; empty where there is none.
        """
        place = Place(self._cluster.namespace, self._declaration.pull_secret)
        token = secret.new_token()
        with contextlib.suppress(AlreadyExists):  # of two who install at once one has made the token
            self._cluster.create(gateway_secret(place, {_TOKEN: token}))
        values = {_TOKEN: token, **self._values()}
        if self._declaration.queue:
            values[_QUEUE] = self._declaration.queue
        self._cluster.apply(gateway_secret(place, values))
        if _QUEUE not in values:
            return ""
        # The token keeps anybody who may look at pods from guessing passwords.
        return hmac.new(values[_TOKEN].encode(), values[_QUEUE].encode(), hashlib.sha256).hexdigest()[:32]

    def management_token(self) -> str:
        """Return the token that the gateway's own paths want; empty where there is no gateway."""
        return self._values().get(_TOKEN, "")

    def has_queue(self) -> bool:
        """Whether the gateway can queue predictions."""
        return bool(self._values().get(_QUEUE))

    def lacks_queue(self) -> bool:
        """Whether a queue is declared, and the gateway has none."""
        return bool(self._declaration.queue) and not self.has_queue()

    def check_queue(self) -> None:
        """Refuse a queue that is not the gateway's: what is in one would not be found in the other.

        Raises
        ------
        Conflict
            Naming the setting, and how to move.
        """
        known = self._values().get(_QUEUE)
        if known and self._declaration.queue and known != self._declaration.queue:
            name = self._declaration.name
            raise Conflict(
                f"The gateway in the namespace {self._cluster.namespace!r} of {self._cluster} has another queue than `queue` "
                f"under [data_planes.{name}] in {self._home.config}. Somebody else set it; `mlflow-domino gateway install -t "
                f"domino:/{name}` moves the gateway to yours, and leaves behind what waits in the other."
            )

    def _values(self) -> dict[str, str]:
        found = (self._cluster.get("Secret", GATEWAY) or {}).get("data") or {}
        return {name: base64.b64decode(value).decode("utf-8") for name, value in found.items()}
