"""Data planes as a target URI names them and as ``config.toml`` declares them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import ipaddress
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_domino.errors import InvalidInput, NotFound
from mlflow_domino.home import Home

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Declaration", "declared", "tables"]

_KINDS = ("local", "docker", "kubernetes")
#: Of the gateways, so that they run side by side on one machine; in a cluster it is the port of the Service.
_PORTS = {"local": 8420, "docker": 8421, "kubernetes": 80}
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


@dataclass(frozen=True)
class Declaration:
    """A data plane: a table ``[data_planes.NAME]``, or the defaults.

    Attributes
    ----------
    name : str
        As in ``domino:/NAME``; the bare target ``domino`` is ``local``.
    kind : str
        What runs replicas there.
    address, port : str, int
        Where the gateway listens.
    url : str
        What callers use, where it is not address and port; empty otherwise.
    base_image : str
        Docker: the environment of versions that name none; ``{python}`` stands for a version such as 3.11.
    tls_certificate, tls_key : str
        PEM files; the gateway speaks HTTPS when both are given, and reads them again when they change.
    context, namespace : str
        Kubernetes: of the kubeconfig and of the cluster; empty: the current context (or the pod's own cluster), and the
        namespace that it names.
    registry : str
        Kubernetes: where images are pushed to and pulled from, such as ``registry.example.com/models``.
    pull_secret : str
        Kubernetes: name of the Secret with which the cluster pulls them.
    expose : str
        Kubernetes: ``nodeport``, ``loadbalancer`` or ``ingress``.
    node_port : int
        Kubernetes: of the gateway; 0: the cluster chooses.
    ingress_host, ingress_class : str
        Kubernetes: where callers find the gateway with ``expose = "ingress"``.
    tls_secret : str
        Kubernetes: name of the Secret of type kubernetes.io/tls with which the gateway (or the Ingress) speaks HTTPS.
    gateway_replicas : int
        Kubernetes: pods of the gateway.
    gateway_image : str
        Kubernetes: the gateway's image, where it is not to be built here and pushed to `registry`.
    remote : bool
        Whether it is a data plane away from the control plane: it refuses what needs that.
    queue : str
        Database of asynchronous predictions, ``postgresql://…``; the local and Docker data planes have one of their own.
    async_max_request, async_max_result : int
        Bytes of an asynchronous prediction's request, and of its result.
    webhook_private : bool
        Whether webhooks of asynchronous predictions may be sent to private addresses, and without TLS.
    """

    name: str = "local"
    kind: str = "local"
    address: str = "127.0.0.1"
    port: int = 8420
    url: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    base_image: str = "python:{python}-slim-bookworm"
    context: str = ""
    namespace: str = ""
    registry: str = ""
    pull_secret: str = ""
    expose: str = "nodeport"
    node_port: int = 0
    ingress_host: str = ""
    ingress_class: str = ""
    tls_secret: str = ""
    gateway_replicas: int = 1
    gateway_image: str = ""
    remote: bool = False
    queue: str = field(default="", repr=False)
    async_max_request: int = 10240
    async_max_result: int = 10240
    webhook_private: bool = False

    @property
    def exposed(self) -> bool:
        """Whether others than this machine's users can reach the gateway."""
        return not (self.address.startswith("127.") or self.address in ("localhost", "::1"))

    @property
    def no_async(self) -> str:
        """Why asynchronous endpoints cannot be here; empty where they can."""
        if self.queue:
            return ""
        way_out = f'set queue = "postgresql://…" under [data_planes.{self.name}]'
        if self.remote:
            return (
                f"Endpoints on a remote data plane do not support asynchronous requests, and {self.name!r} is one: {way_out} "
                "to give it a queue of its own."
            )
        if self.kind == "kubernetes":
            return f"Asynchronous endpoints on Kubernetes need a database for their queue: {way_out}."
        return ""

    @property
    def base_url(self) -> str:
        if self.url:
            return self.url.rstrip("/")
        host = "127.0.0.1" if self.address in ("0.0.0.0", "::") else self.address  # noqa: S104 - read, not bound
        scheme = "https" if self.tls_certificate else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"


def declared(target_uri: str, home: Home) -> Declaration:
    """Return the data plane that a target URI such as ``domino`` or ``domino:/NAME`` means.

    Raises
    ------
    InvalidInput
        When the URI, or what ``config.toml`` says of the data plane, is wrong.
    NotFound
        When no data plane of that name is declared.
    """
    match = re.fullmatch(r"domino(?::/{0,2}(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,62})?/?)?", target_uri)
    if not match:
        raise InvalidInput(f"{target_uri!r} is no target: `domino` or `domino:/NAME` is wanted.")
    name = match["name"] or "local"
    known_tables = tables(home.config, "data_planes")
    if name in known_tables:
        return _checked(name, known_tables[name], home.config)
    if name not in _KINDS:
        known = ", ".join(sorted({*_KINDS, *known_tables}))
        raise NotFound(f"No data plane {name!r} is declared in {home.config}; there are: {known}.")
    return Declaration(name, kind=name, port=_PORTS[name])


def tables(path: Path, group: str) -> Mapping[str, Any]:
    """Return the tables ``[GROUP.NAME]`` of a configuration file, none where there is no file.

    Raises
    ------
    InvalidInput
        When it cannot be read, or holds something else there.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    found = document.get(group, {})
    if not isinstance(found, Mapping) or not all(isinstance(t, Mapping) for t in found.values()):
        raise InvalidInput(f"{path}: tables named [{group}.NAME] are wanted.")
    return found


def _checked(name: str, table: Mapping[str, Any], path: Path) -> Declaration:
    fields = {f.name: f for f in dataclasses.fields(Declaration) if f.name != "name"}
    where = f"{path}: [data_planes.{name}]"
    for key, value in table.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise InvalidInput(f"{where} unknown key {key!r}{f', did you mean {near[0]!r}?' if near else '.'}")
        wanted, right = _RULES[key]
        if not right(value):
            shown = "…" if key == "queue" else repr(value)  # it may hold a password
            raise InvalidInput(f"{where} {key} = {shown}: {wanted} is wanted.")
    kind = table.get("kind", name if name in _KINDS else "local")
    plane = Declaration(**{"port": _PORTS[kind], **table, "name": name, "kind": kind})
    if plane.kind == "local" and name != "local":
        raise InvalidInput(f"{where} a home has one local data plane, [data_planes.local].")
    if bool(plane.tls_certificate) != bool(plane.tls_key):
        raise InvalidInput(f"{where} tls_certificate and tls_key go together.")
    if plane.kind == "kubernetes":
        _check_cluster(plane, table, where)
    else:
        misplaced = sorted(set(table) & _OF_CLUSTERS)
        if misplaced:
            raise InvalidInput(f"{where} {misplaced[0]} is for data planes of kind kubernetes.")
    return plane


def _check_cluster(plane: Declaration, table: Mapping[str, Any], where: str) -> None:
    if plane.tls_certificate:
        raise InvalidInput(f"{where} in a cluster the certificate is a Secret there: set tls_secret.")
    if "address" in table:
        raise InvalidInput(
            f"{where} address is for gateways on this machine; `expose` says how a cluster's is reached."
        )
    if plane.expose == "ingress" and not plane.ingress_host:
        raise InvalidInput(f'{where} expose = "ingress" needs ingress_host.')
    if plane.node_port and plane.expose != "nodeport":
        raise InvalidInput(f'{where} node_port needs expose = "nodeport".')


#: Keys that mean nothing off Kubernetes.
_OF_CLUSTERS = {
    "context", "namespace", "registry", "pull_secret", "expose", "node_port", "ingress_host", "ingress_class", "tls_secret",
    "gateway_replicas", "gateway_image",
}  # fmt: skip


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute() and Path(value).is_file()


def _is_ip(value: Any) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(value, str) and (value == "localhost" or bool(ipaddress.ip_address(value)))
    return False


def _is_limit(value: Any) -> bool:
    """Whether it is a number of bytes up to what the gateway takes for its own application."""
    return type(value) is int and 1024 <= value <= 1 << 20


_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "kind": (f"one of {', '.join(_KINDS)}", lambda v: v in _KINDS),
    "address": ("an IP address such as 127.0.0.1 or 0.0.0.0", _is_ip),
    "port": ("a number from 1 to 65535", lambda v: type(v) is int and 1 <= v <= 65535),
    "url": ("a URL", lambda v: isinstance(v, str) and re.fullmatch(r"https?://[^\s/]+/?", v) is not None),
    "base_image": ("an image's name, {python} in place of 3.11", lambda v: isinstance(v, str) and re.fullmatch(r"[\w./:@{}-]{1,255}", v) is not None),
    "tls_certificate": ("the absolute path of a PEM file that is there", _is_file),
    "tls_key": ("the absolute path of a PEM file that is there", _is_file),
    "context": ("a context of the kubeconfig", _matches(r"[^\x00-\x1f]{1,253}")),
    "namespace": ("a namespace", _matches(_LABEL)),
    "registry": ("a registry and a folder in it, such as registry.example.com/models",
                 _matches(r"[a-z0-9][A-Za-z0-9.-]{0,252}(:\d{1,5})?(/[a-z0-9][a-z0-9._-]*)*")),
    "pull_secret": ("a Secret's name", _matches(_LABEL)),
    "expose": ("nodeport, loadbalancer or ingress", lambda v: v in ("nodeport", "loadbalancer", "ingress")),
    "node_port": ("a port from 1 to 65535, or 0", lambda v: type(v) is int and 0 <= v <= 65535),
    "ingress_host": ("a host name", _matches(rf"{_LABEL}(\.{_LABEL})*")),
    "ingress_class": ("a class's name", _matches(rf"{_LABEL}(\.{_LABEL})*")),
    "tls_secret": ("a Secret's name", _matches(_LABEL)),
    "gateway_replicas": ("a number from 1 to 32", lambda v: type(v) is int and 1 <= v <= 32),
    "gateway_image": ("an image's name", _matches(r"[\w./:@-]{1,255}")),
    "remote": ("true or false", lambda v: type(v) is bool),
    "async_max_request": ("a number of bytes from 1024 to 1048576", _is_limit),
    "async_max_result": ("a number of bytes from 1024 to 1048576", _is_limit),
    "webhook_private": ("true or false", lambda v: type(v) is bool),
    "queue": ("the URL of a PostgreSQL database", _matches(r"postgresql://\S{1,2048}")),
}  # fmt: skip
