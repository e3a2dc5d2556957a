"""What the gateway's own application must know, as the file ``gateway.json`` that the data plane writes.

::

    {"admin": "/…/envoy/admin",                    Envoy's admin socket
     "management_token": "/…/management-token",    file of mode 0600
     "certificate": null | {"file": "/…", "chain": "/…", "key": "/…"},
     "replicas": [{"endpoint_id": "…", "version": 3, "number": 0, "address": "/…/s/…", "token": "/…/gateway-token"}],
     "queue": null | {"database": "/…/queue-url", "wake": "/…/s/dispatcher", …},
     "asynchronous": [{"endpoint_id": "…", "tokens": "/…/tokens/tokens.json", "version": 3, "addresses": […], …}],
     "generation": 1763900000000000}

The application reads it at each request, so that a change needs no restart. It holds paths of secrets, and no secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow_domino.errors import GatewayFailed, InvalidInput
from mlflow_domino.gateway.routes import check_address
from mlflow_domino.home import read_json, write_json, write_text
from mlflow_domino.secret import new_token

__all__ = [
    "AsyncEndpoint",
    "Certificate",
    "Inventory",
    "InventoryFile",
    "QueueAccess",
    "Replica",
    "ensure_token",
    "read_inventory",
    "write_inventory",
]


@dataclass(frozen=True)
class Replica:
    """A running instance whose metrics are collected.

    Attributes
    ----------
    version, number : int
        Number of the version, and of the replica in it.
    address : str
        Path of its Unix socket, or host:port.
    token : str
        Path of the file with the gateway's own token for the endpoint.
    """

    endpoint_id: str
    version: int
    number: int
    address: str
    token: str

    def __post_init__(self) -> None:
        check_address(self.address)
        if not re.fullmatch(r"[0-9a-f]{24}", self.endpoint_id):
            raise InvalidInput(f"{self.endpoint_id!r} is no endpoint's id.")


@dataclass(frozen=True)
class Certificate:
    """Where the listener's certificate comes from, so that a renewed one is noticed.

    Attributes
    ----------
    file : str
        Envoy's, `Entry.certificate_file`.
    chain, key : str
        The PEM files that somebody renews.
    """

    file: str
    chain: str
    key: str


@dataclass(frozen=True)
class QueueAccess:
    """How the queue of asynchronous predictions is reached, and what of it the data plane sets.

    Attributes
    ----------
    database : str
        Path of a file of mode 0600 with the database's URL.
    wake : str
        Path of the dispatcher's datagram socket: an endpoint's id sent there tells that something was submitted.
    max_request, max_result : int
        Bytes.
    private_webhooks : bool
        Whether webhooks may go to private addresses, and without TLS.
    """

    database: str
    wake: str
    max_request: int = 10240
    max_result: int = 10240
    private_webhooks: bool = False


@dataclass(frozen=True)
class AsyncEndpoint:
    """An asynchronous endpoint, and the replicas that predictions are sent to now.

    Attributes
    ----------
    tokens, token : str
        Paths of the file with the digests of callers' tokens, and of that with the gateway's own token.
    stopped : bool
        Whether its owner stopped it.
    version : int or None
        Number of the version behind `latest`, None while none runs.
    addresses : tuple of str
        Where its replicas take Seldon messages.
    limit : int
        Predictions that a replica runs at once.
    drain_s : float
        What runs on another version than `version` is run again after so long.
    """

    endpoint_id: str
    tokens: str
    token: str
    stopped: bool
    version: int | None
    addresses: tuple[str, ...]
    limit: int
    timeout_s: float
    keep_s: float
    max_attempts: int
    max_queued: int
    drain_s: float

    def __post_init__(self) -> None:
        for address in self.addresses:
            check_address(address)
        if not re.fullmatch(r"[0-9a-f]{24}", self.endpoint_id):
            raise InvalidInput(f"{self.endpoint_id!r} is no endpoint's id.")


@dataclass(frozen=True)
class Inventory:
    """What runs behind a gateway, and where its secrets are.

    Attributes
    ----------
    generation : int
        Grows with each change; a dispatcher shows the one that it follows.
    """

    admin: str
    management_token: str
    replicas: tuple[Replica, ...] = ()
    certificate: Certificate | None = None
    queue: QueueAccess | None = None
    asynchronous: tuple[AsyncEndpoint, ...] = ()
    generation: int = 0


def write_inventory(path: Path, inventory: Inventory) -> None:
    """Replace ``gateway.json`` whole."""
    write_json(path, asdict(inventory))


def read_inventory(path: Path) -> Inventory:
    """Return what `write_inventory` wrote.

    Raises
    ------
    GatewayFailed
        It is missing, or not what some release of ours writes.
    """
    try:
        document: Mapping[str, Any] | None = read_json(path)
        if document is None:
            raise ValueError("there is no such file")
        certificate, queue = document["certificate"], document.get("queue")
        return Inventory(
            admin=document["admin"],
            management_token=document["management_token"],
            replicas=tuple(Replica(**one) for one in document["replicas"]),
            certificate=Certificate(**certificate) if certificate else None,
            queue=QueueAccess(**queue) if queue else None,
            asynchronous=tuple(
                AsyncEndpoint(**{**one, "addresses": tuple(one["addresses"])})
                for one in document.get("asynchronous", ())
            ),
            generation=document.get("generation", 0),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GatewayFailed(f"{path} cannot be read: {error}") from error


class InventoryFile:
    """What the file holds now; read again when it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, int, int], Inventory] | None = None

    def __call__(self) -> Inventory:
        """Return the inventory.

        Raises
        ------
        GatewayFailed
            As `read_inventory`.
        """
        try:
            found = self._path.stat()
        except OSError as error:
            raise GatewayFailed(f"{self._path} cannot be read: {error}") from error
        state = (found.st_mtime_ns, found.st_ino, found.st_size)
        known = self._known
        if known is None or known[0] != state:
            known = self._known = state, read_inventory(self._path)
        return known[1]


def ensure_token(path: Path) -> str:
    """Return the token in a file of mode 0600, which is made where there is none."""
    try:
        return path.read_text("ascii").strip()
    except FileNotFoundError:
        token = new_token()
        write_text(path, token)
        return token
