"""The gateway of the local data plane: one Envoy and the gateway's own application, on this machine."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlflow_domino.data_planes.base import World
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.supervisor import Launch, clean_environment
from mlflow_domino.errors import InvalidInput, Unavailable
from mlflow_domino.gateway.entry import Entry
from mlflow_domino.gateway.inventory import (
    Certificate,
    Inventory,
    QueueAccess,
    Replica,
    ensure_token,
    write_inventory,
)
from mlflow_domino.gateway.proxy import Envoy
from mlflow_domino.gateway.routing import async_endpoints, route_table
from mlflow_domino.gateway.wake import follow
from mlflow_domino.home import Home, write_text
from mlflow_domino.models import Endpoint, Target, Version
from mlflow_domino.queue.database import Database, sqlite_url
from mlflow_domino.queue.queue import Queue

__all__ = ["LocalGateway"]

_START_S = 15.0
#: A dispatcher that is busy looks at the inventory later, and sends what it should not to a replica that then goes.
_FOLLOW_S = 5.0


class LocalGateway:
    """Has Envoy route to replicas on this machine.

    Parameters
    ----------
    home : Home
    declaration : Declaration
        Where it listens.
    addresses, message_addresses : callable
        Give the addresses of a version's replicas, of those of an asynchronous one also for Seldon messages: sockets'
        paths, or host:port.
    """

    def __init__(
        self,
        home: Home,
        declaration: Declaration,
        addresses: Callable[[Version], tuple[str, ...]],
        message_addresses: Callable[[Version], tuple[str, ...]],
    ) -> None:
        self._home = home
        self._declaration = declaration
        self._addresses = addresses
        self._message_addresses = message_addresses
        self._log = home.log("envoy")

    @property
    def _envoy(self) -> Envoy:
        declaration = self._declaration
        entry = Entry(
            folder=self._home.run / "envoy",
            application=self._application,
            host=_ip(declaration.address),
            port=declaration.port,
            tls=bool(declaration.tls_certificate),
        )
        return Envoy(entry, log=self._log)

    @property
    def _application(self) -> str:
        return str(self._home.run / "s" / "gateway")

    @property
    def _inventory(self) -> Path:
        return self._home.run / "gateway.json"

    def moved_from(self) -> Declaration | None:
        """Return what a gateway that runs was started with, where it is to listen elsewhere by now; None otherwise."""
        there, wanted = self._envoy.listening(), self._envoy.entry
        if there is None or there == (wanted.host, wanted.port, wanted.tls):
            return None
        host, port, tls = there
        certificate = self._declaration.tls_certificate or "(that of before)"
        return replace(self._declaration, address=host, port=port, tls_certificate=certificate if tls else "")

    def check_port(self) -> None:
        """Refuse a port that somebody else listens on.

        Raises
        ------
        Unavailable
            Naming the port and the setting.
        """
        host, port = _ip(self._declaration.address), self._declaration.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                raise Unavailable(
                    f"The gateway cannot listen on {host}:{port}: {'the port is taken' if taken else error.strerror}. "
                    f"Another home's gateway may run there; set `port` under [data_planes.{self._declaration.name}] in {self._home.config}."
                ) from error

    def prepare(self, world: World) -> None:
        """Write everything that Envoy and the application start from."""
        declaration = self._declaration
        chain = Path(declaration.tls_certificate) if declaration.tls_certificate else None
        key = Path(declaration.tls_key) if declaration.tls_key else None
        self._envoy.prepare(route_table(world, self._addresses, generation=_generation()), chain=chain, key=key)
        self._write_inventory(world)

    def launch(self) -> Launch:
        """Return what runs the gateway's own application, in this package's environment."""
        return Launch(
            argv=(sys.executable, "-m", "mlflow_domino.gateway.serve", self._application, str(self._inventory)),
            environment=clean_environment(),
            directory="/",
            log=str(self._home.log("gateway")),
        )

    def dispatcher(self) -> Launch:
        """Return what runs the dispatcher of asynchronous predictions, likewise."""
        return Launch(
            argv=(sys.executable, "-m", "mlflow_domino.gateway.dispatcher", str(self._inventory)),
            environment=clean_environment(),
            directory="/",
            log=str(self._home.log("dispatcher")),
        )

    def envoy_argv(self) -> list[str]:
        return self._envoy.argv()

    def await_ready(self) -> None:
        """Return when Envoy listens and has read its files.

        Raises
        ------
        GatewayFailed
            With the end of Envoy's log.
        """
        self._envoy.await_ready(timeout_s=_START_S)

    def publish(self, world: World) -> None:
        """Have Envoy route as the records say; return when it has accepted it."""
        declaration = self._declaration
        if declaration.tls_certificate:
            # Half renewed, they do not belong together for a moment; the application looks again.
            with contextlib.suppress(InvalidInput):
                self._envoy.renew_certificate(Path(declaration.tls_certificate), Path(declaration.tls_key))
        table = route_table(world, self._addresses, generation=_generation())
        self._envoy.publish(table)
        self._envoy.retire(table)
        inventory = self._write_inventory(world)
        if inventory.queue is not None:
            follow(inventory.queue.wake, inventory.generation, timeout_s=_FOLLOW_S)

    def render(self, world: World, addresses: Callable[[Version], tuple[str, ...]]) -> dict[str, str]:
        """Return the files that Envoy would read, by name, with replicas at these addresses."""
        files = self._envoy.render(route_table(world, addresses))
        return {f"envoy/{name}": content for name, content in files.items()}

    def active(self, version_id: str) -> int:
        """Return the number of requests that the gateway has at a version, or waiting for it."""
        return self._envoy.active(version_id)

    def forget_predictions(self, endpoint: Endpoint) -> None:
        """Remove everything of an endpoint's from the queue, which it is no longer in the inventory of.

        Raises
        ------
        Unavailable
            The database does not answer.
        """
        if not self._declaration.queue and not self._home.predictions.exists():
            return
        database = Database(self._queue_url())
        try:
            Queue(database).forget(endpoint.id)
        finally:
            database.close()

    def _queue_url(self) -> str:
        return self._declaration.queue or sqlite_url(self._home.predictions)

    def _write_inventory(self, world: World) -> Inventory:
        """Tell the application where replicas are, so that it can collect their metrics."""
        declaration, entry = self._declaration, self._envoy.entry
        replicas = [
            Replica(v.endpoint_id, v.number, n, address, str(self._home.gateway_token(v.endpoint_id)))
            for v in world.versions
            if v.target is Target.RUNNING
            for n, address in enumerate(self._addresses(v))
        ]
        certificate = None
        if declaration.tls_certificate:
            chain, key = declaration.tls_certificate, declaration.tls_key
            certificate = Certificate(str(entry.certificate_file), chain, key)
        token = self._home.root / "management-token"
        ensure_token(token)
        asynchronous = async_endpoints(
            world,
            self._message_addresses,
            tokens=lambda endpoint_id: str(self._home.tokens(endpoint_id) / "tokens.json"),
            token=lambda endpoint_id: str(self._home.gateway_token(endpoint_id)),
        )
        queue = self._queue() if asynchronous else None
        inventory = Inventory(
            str(entry.admin_socket), str(token), tuple(replicas), certificate,
            queue=queue, asynchronous=asynchronous, generation=_generation(),
        )  # fmt: skip
        write_inventory(self._inventory, inventory)
        return inventory

    def _queue(self) -> QueueAccess:
        """Return how the queue is reached, and write down its URL, which may hold a password."""
        declaration, home = self._declaration, self._home
        write_text(home.queue, self._queue_url() + "\n")
        return QueueAccess(
            str(home.queue),
            str(home.run / "s" / "dispatcher"),
            max_request=declaration.async_max_request,
            max_result=declaration.async_max_result,
            private_webhooks=declaration.webhook_private,
        )


def _generation() -> int:
    return time.time_ns() // 1000


def _ip(address: str) -> str:
    return "127.0.0.1" if address == "localhost" else str(ipaddress.ip_address(address))
