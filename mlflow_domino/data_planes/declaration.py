"""Data planes as a target URI names them and as ``config.toml`` declares them."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_domino.errors import InvalidInput, NotFound, Unsupported
from mlflow_domino.home import Home

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Declaration", "declared", "tables"]

_KINDS = ("local", "docker")
#: Of the gateways, so that they run side by side on one machine.
_PORTS = {"local": 8420, "docker": 8421}


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
    """

    name: str = "local"
    kind: str = "local"
    address: str = "127.0.0.1"
    port: int = 8420
    url: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    base_image: str = "python:{python}-slim-bookworm"

    @property
    def exposed(self) -> bool:
        """Whether others than this machine's users can reach the gateway."""
        return not (self.address.startswith("127.") or self.address in ("localhost", "::1"))

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
    if name == "kubernetes":
        raise Unsupported("This release has no Kubernetes data plane; use `-t domino` or `-t domino:/docker`.")
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
            raise InvalidInput(f"{where} unknown key {key!r}{f', did you mean {near[0]!r}?' if near else ''}.")
        wanted, right = _RULES[key]
        if not right(value):
            raise InvalidInput(f"{where} {key} = {value!r}: {wanted} is wanted.")
    kind = table.get("kind", name if name in _KINDS else "local")
    plane = Declaration(**{"port": _PORTS[kind], **table, "name": name, "kind": kind})
    if plane.kind == "local" and name != "local":
        raise InvalidInput(f"{where} a home has one local data plane, [data_planes.local].")
    if bool(plane.tls_certificate) != bool(plane.tls_key):
        raise InvalidInput(f"{where} tls_certificate and tls_key go together.")
    return plane


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute() and Path(value).is_file()


_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "kind": (f"one of {', '.join(_KINDS)}", lambda v: v in _KINDS),
    "address": ("an IP address or host name", lambda v: isinstance(v, str) and re.fullmatch(r"[0-9A-Za-z.:-]{1,253}", v) is not None),
    "port": ("a number from 1 to 65535", lambda v: type(v) is int and 1 <= v <= 65535),
    "url": ("a URL", lambda v: isinstance(v, str) and re.fullmatch(r"https?://[^\s/]+/?", v) is not None),
    "base_image": ("an image's name, {python} in place of 3.11", lambda v: isinstance(v, str) and re.fullmatch(r"[\w./:@{}-]{1,255}", v) is not None),
    "tls_certificate": ("the absolute path of a PEM file that is there", _is_file),
    "tls_key": ("the absolute path of a PEM file that is there", _is_file),
}  # fmt: skip
