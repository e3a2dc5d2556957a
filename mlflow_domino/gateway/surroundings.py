"""What a gateway's program finds around it in its pod: who it is, and which folders it has.

Written by the manifests, as environment variables; every process of the pod reads them the same way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_domino.errors import InvalidInput
from mlflow_domino.gateway.entry import Entry
from mlflow_domino.gateway.inventory import (
    AsyncEndpoint,
    Certificate,
    Inventory,
    QueueAccess,
    Replica,
    write_inventory,
)
from mlflow_domino.gateway.proxy import Envoy

__all__ = ["PORT", "WATCHER_PORT", "Surroundings"]

#: Of callers' requests, and of probes and questions from the control plane.
PORT, WATCHER_PORT = 8420, 8421


@dataclass(frozen=True)
class Surroundings:
    """Who this gateway is, and which folders it has.

    Attributes
    ----------
    namespace, pod, uid : str
        Of the pod; its Lease is named after it, and belongs to it by its uid.
    release : str
        What the image was made from.
    folder : Path
        Writable, of this pod alone; lives as long as the pod, longer than its container.
    management : Path
        Folder of a mounted Secret with the file ``management-token``, and ``queue`` where predictions can be queued.
    certificate : Path or None
        Folder of a mounted Secret with ``tls.crt`` and ``tls.key``; None where the gateway speaks plain HTTP.
    host, port, watcher_port : str, int
        Where Envoy listens, and where the watcher does.
    gateways : int
        How many pods the gateway is meant to have.
    async_max_request, async_max_result : int
        Bytes of an asynchronous prediction's request, and of its result.
    webhook_private : bool
        Whether webhooks may go to private addresses, and without TLS.
    """

    namespace: str
    pod: str
    uid: str
    release: str = ""
    folder: Path = Path("/run/domino")
    management: Path = Path("/etc/domino/gateway")
    certificate: Path | None = None
    host: str = "0.0.0.0"  # noqa: S104 - in a pod, which is reached by its address
    port: int = PORT
    watcher_port: int = WATCHER_PORT
    gateways: int = 1
    async_max_request: int = 10240
    async_max_result: int = 10240
    webhook_private: bool = False

    @classmethod
    def find(cls, environment: Mapping[str, str] = os.environ) -> Surroundings:
        """Read them from the variables ``DOMINO_…``.

        Raises
        ------
        InvalidInput
            One is missing or wrong.
        """
        try:
            certificate = environment.get("DOMINO_TLS", "")
            return cls(
                namespace=environment["DOMINO_NAMESPACE"],
                pod=environment["DOMINO_POD"],
                uid=environment["DOMINO_POD_UID"],
                release=environment.get("DOMINO_RELEASE", ""),
                folder=Path(environment.get("DOMINO_FOLDER", "/run/domino")),
                management=Path(environment.get("DOMINO_MANAGEMENT", "/etc/domino/gateway")),
                certificate=Path(certificate) if certificate else None,
                host=environment.get("DOMINO_ADDRESS", cls.host),
                port=int(environment.get("DOMINO_PORT", PORT)),
                watcher_port=int(environment.get("DOMINO_WATCHER_PORT", WATCHER_PORT)),
                gateways=max(1, int(environment.get("DOMINO_GATEWAYS", "1"))),
                async_max_request=int(environment.get("DOMINO_ASYNC_MAX_REQUEST", cls.async_max_request)),
                async_max_result=int(environment.get("DOMINO_ASYNC_MAX_RESULT", cls.async_max_result)),
                webhook_private=environment.get("DOMINO_WEBHOOK_PRIVATE", "") == "true",
            )
        except (KeyError, ValueError) as error:
            raise InvalidInput(f"A variable of the gateway's pod is missing or wrong: {error}.") from error

    @property
    def envoy(self) -> Envoy:
        entry = Entry(
            self.folder / "envoy", str(self.application), host=self.host, port=self.port, tls=bool(self.certificate)
        )
        return Envoy(entry, log=self.folder / "envoy.log")

    @property
    def chain(self) -> Path | None:
        return self.certificate / "tls.crt" if self.certificate else None

    @property
    def key(self) -> Path | None:
        return self.certificate / "tls.key" if self.certificate else None

    @property
    def application(self) -> Path:
        """Socket of the gateway's own application."""
        return self.folder / "application"

    @property
    def inventory(self) -> Path:
        return self.folder / "gateway.json"

    @property
    def tokens(self) -> Path:
        """Folder with the gateway's own token for each endpoint, and with the digests of callers' tokens."""
        return self.folder / "tokens"

    @property
    def queue(self) -> QueueAccess | None:
        """How the queue of predictions is reached; None where this gateway has none."""
        database = self.management / "queue"
        if not database.exists():
            return None
        return QueueAccess(
            str(database),
            str(self.folder / "dispatcher"),
            max_request=self.async_max_request,
            max_result=self.async_max_result,
            private_webhooks=self.webhook_private,
        )

    @property
    def leaving(self) -> Path:
        """A file that is there from the moment that the pod is told to end."""
        return self.folder / "leaving"

    def tell(self, replicas: Iterable[Replica], asynchronous: Iterable[AsyncEndpoint] = ()) -> Inventory:
        """Tell the application and the dispatcher where replicas are; return what they are told."""
        entry = self.envoy.entry
        certificate = None
        if self.certificate is not None:
            certificate = Certificate(str(entry.certificate_file), str(self.chain), str(self.key))
        inventory = Inventory(
            str(entry.admin_socket),
            str(self.management / "management-token"),
            tuple(replicas),
            certificate,
            queue=self.queue,
            asynchronous=tuple(asynchronous),
            generation=time.time_ns() // 1000,
        )
        write_inventory(self.inventory, inventory)
        return inventory
