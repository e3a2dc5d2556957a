"""Where a gateway listens, and where its files are."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from mlflow_domino.errors import InvalidInput
from mlflow_domino.gateway.routes import check_address

__all__ = ["Entry"]


@dataclass(frozen=True)
class Entry:
    """Where a gateway listens, and where its files are.

    Attributes
    ----------
    folder : Path
        Of Envoy's files and its admin socket; its path should be short.
    application : str
        Address of the gateway's own application: the path of a Unix socket, or host:port.
    host, port : str, int
        IP address and port of the listener.
    tls : bool
        Whether it speaks TLS, with the certificate in `certificate_file`.
    """

    folder: Path
    application: str
    host: str = "127.0.0.1"
    port: int = 8420
    tls: bool = False

    def __post_init__(self) -> None:
        check_address(self.application)
        check_address(str(self.admin_socket))
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise InvalidInput(f"host={self.host}: an IP address is wanted, such as 127.0.0.1 or 0.0.0.0.") from None
        if not 1 <= self.port < 1 << 16:
            raise InvalidInput(f"port={self.port}: a port from 1 to 65535 is wanted.")

    @property
    def admin_socket(self) -> Path:
        return self.folder / "admin"

    @property
    def bootstrap_file(self) -> Path:
        return self.folder / "bootstrap.json"

    # Each in a folder of its own: Envoy reads a file again whenever anything in its folder is renamed.
    @property
    def listener_file(self) -> Path:
        return self.folder / "listener" / "listener.json"

    @property
    def clusters_file(self) -> Path:
        return self.folder / "clusters" / "clusters.json"

    @property
    def routes_file(self) -> Path:
        return self.folder / "routes" / "routes.json"

    @property
    def certificate_file(self) -> Path:
        return self.folder / "certificate" / "certificate.json"
