"""Which cluster is meant: a context of the kubeconfig, or the cluster that this process runs in."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow_domino.errors import InvalidInput, Unavailable

__all__ = ["Connection", "connect"]

_IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: The peer is gone when it says nothing for so long: a watch would wait for ever behind a cut cable.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}


@dataclass(frozen=True)
class Connection:
    """An API client and what it was made from.

    Attributes
    ----------
    context : str
        Name of the context; ``in-cluster`` where there is none.
    namespace : str
    server : str
        URL of the API server, without credentials.
    client : object
        The client library's `ApiClient`.
    """

    context: str
    namespace: str
    server: str
    client: Any = field(repr=False)


@dataclass(frozen=True)
class _Context:
    name: str
    namespace: str
    runs_program: bool


def connect(context: str, namespace: str, kubeconfig: str | None = None) -> Connection:
    """Prepare a client; nothing is sent yet.

    Parameters
    ----------
    context : str
        Empty for the current context, or else the cluster that this process runs in.
    namespace : str
        Empty for the one of the context, or else ``default``.
    kubeconfig : str or None
        One file or several, as in the variable KUBECONFIG, which is the default.

    Raises
    ------
    InvalidInput
        No such context (names those that there are), or a kubeconfig that cannot be read.
    Unavailable
        The program that a kubeconfig names gave no credentials.
    """
    paths = (kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config").split(os.pathsep)
    files = [path for path in (Path(p).expanduser() for p in paths if p) if path.exists()]
    chosen = _choose(context, files)
    if chosen is None:
        return _from_pod(namespace)
    from kubernetes import client, config  # here: takes half a second

    settings = _unhurried(client.Configuration())
    try:
        joined = os.pathsep.join(map(str, files))
        config.load_kube_config(joined, chosen.name, client_configuration=settings, persist_config=False)
    except (config.ConfigException, OSError, ValueError, TypeError) as error:
        raise InvalidInput(f"The context {chosen.name!r} of the kubeconfig cannot be used: {error}") from None
    if chosen.runs_program and not (settings.api_key or settings.cert_file):
        raise Unavailable(
            f"The program that the kubeconfig names for the context {chosen.name!r} gave no credentials; "
            f"`kubectl --context {chosen.name} get pods` shows why."
        )
    return _connection(settings, chosen.name, namespace or chosen.namespace or "default")


def _choose(wanted: str, files: Sequence[Path]) -> _Context | None:
    """Return a context as kubectl finds it (the first file that says something wins), None where there is none."""
    contexts: dict[str, _Context] = {}
    current = ""
    programs: dict[str, bool] = {}
    documents = [(path, _read(path)) for path in files]
    for _, document in documents:
        for user in document.get("users") or ():
            programs.setdefault(user["name"], "exec" in (user.get("user") or {}))
    for path, document in documents:
        current = current or document.get("current-context") or ""
        try:
            for entry in document.get("contexts") or ():
                what = entry.get("context") or {}
                found = _Context(entry["name"], what.get("namespace") or "", programs.get(what.get("user", ""), False))
                contexts.setdefault(found.name, found)
        except (AttributeError, KeyError, TypeError):
            raise InvalidInput(f"{path} is no kubeconfig: a list of contexts with names is wanted.") from None
    if wanted and wanted not in contexts:
        there = f"there are: {', '.join(sorted(contexts))}" if contexts else "there is none at all"
        where = ", ".join(map(str, files)) or "no file that exists; set KUBECONFIG"
        raise InvalidInput(
            f"No context {wanted!r} in the kubeconfig ({where}); {there}. Set `context` of the data plane to one that is there."
        )
    if current and current not in contexts and not wanted:
        raise InvalidInput(
            f"The kubeconfig's current context {current!r} is not in it; `kubectl config use-context` sets it."
        )
    return contexts.get(wanted or current)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        # An error of the parser's shows lines, which may hold a key.
        why = error.strerror if isinstance(error, OSError) else "it is no YAML"
        raise InvalidInput(f"The kubeconfig {path} cannot be read: {why}.") from None
    if not isinstance(document, dict):
        raise InvalidInput(f"The kubeconfig {path} cannot be read: it is empty, or no mapping.")
    return document


def _from_pod(namespace: str) -> Connection:
    if not (_IN_CLUSTER / "token").exists() or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        raise InvalidInput(
            "No Kubernetes cluster is configured: the kubeconfig has no current context, and this is no pod. Set "
            "KUBECONFIG, `kubectl config use-context`, or `context` of the data plane."
        )
    from kubernetes import client, config

    settings = _unhurried(client.Configuration())
    try:
        config.load_incluster_config(client_configuration=settings)
        own = (_IN_CLUSTER / "namespace").read_text("utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise InvalidInput(f"The pod's own credentials cannot be used: {error}") from None
    return _connection(settings, "in-cluster", namespace or own or "default")


def _unhurried(settings: Any) -> Any:
    settings.retries = False  # three hidden ones would stretch every time limit four times
    settings.client_side_validation = False
    return settings


def _connection(settings: Any, context: str, namespace: str) -> Connection:
    from kubernetes import client
    from urllib3.connection import HTTPConnection

    from mlflow_domino import __version__

    api = client.ApiClient(settings)
    api.user_agent = f"mlflow-domino/{__version__}"
    options = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    options += [(socket.IPPROTO_TCP, getattr(socket, k), v) for k, v in _KEEPALIVE.items() if hasattr(socket, k)]
    api.rest_client.pool_manager.connection_pool_kw["socket_options"] = options
    parts = urlsplit(settings.host)
    return Connection(context, namespace, f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}", api)
