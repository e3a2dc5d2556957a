"""What this replica is to do: harness.json and the environment, read once."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field, fields
from typing import Any, Mapping

__all__ = ["Config", "Source", "read_config"]

_CONFIG = "DOMINO_HARNESS_CONFIG"


@dataclass(frozen=True)
class Source:
    """Where the model is.

    Attributes
    ----------
    kind : str
        ``Registry`` (an MLflow model's directory) or ``File`` (a project's).
    path : str
        That directory.
    name, version : str or None
        Registered model and its version, where it is one.
    file, function : str
        Script, relative to `path`, and the callable in it; of a ``File`` only.
    """

    kind: str
    path: str
    name: str | None = None
    version: str | None = None
    file: str = ""
    function: str = ""


@dataclass(frozen=True)
class Config:
    """Settings of one replica; keys that another release wrote are ignored, absent ones take these defaults."""

    source: Source
    endpoint_id: str = ""
    endpoint_name: str = ""
    version_id: str = ""
    version_number: int = 1
    workers: int = 1
    threads: int = 1
    preload: str = "auto"
    max_queue: int = 256
    max_batch_size: int = 1
    max_batch_delay_ms: float = 5.0
    worker_max_requests: int = 0
    worker_max_memory: int = 0
    request_timeout_s: float = 60.0
    is_async: bool = False
    async_timeout_s: float = 1800.0
    seldon_python: str = ""
    max_body: int = 10 << 20
    drain_s: float = 30.0
    start_timeout_s: float = 120.0
    strict_schema: bool = True
    debug: bool = False
    log_http_request_response: bool = False
    warmup_file: str = ""
    tokens: str | None = None
    replica_dir: str = ""
    socket: str = ""
    port: int = 0
    probe_port: int = 0
    seldon_port: int = 9000
    metrics_port: int = 6000
    working_dir: str = ""
    #: The replica's first process, by which it is known outside.
    pid: int = 0
    open_to_all: bool = False
    token_digests: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Requests that a worker may hold: its threads', and those that wait to be joined or are."""
        return self.threads + (2 * self.max_batch_size if self.max_batch_size > 1 else 0)

    @property
    def starting_socket(self) -> str:
        """Where uWSGI listens until the model is loaded and warm, since it binds before it loads."""
        return self.socket + ".starting"

    @property
    def seldon_socket(self) -> str:
        """Where seldon-core's microservice listens, beside the harness."""
        return self.socket + ".seldon"

    @property
    def seldon_starting_socket(self) -> str:
        return self.seldon_socket + ".starting"

    @property
    def capacity(self) -> int:
        """Requests that the replica may hold at once."""
        return self.workers * self.slots


def read_config(environ: Mapping[str, str]) -> Config:
    """Read the file that the environment names.

    Raises
    ------
    ValueError, OSError, KeyError
        Where there is no such file, or it is not ours.
    """
    with open(environ[_CONFIG], encoding="utf-8") as file:
        document = json.load(file)
    values = _known(Config, document)
    values["source"] = Source(**_known(Source, document["source"]))
    values.update(_from_environment(environ))
    for key in ("replica_dir", "working_dir"):
        os.makedirs(values[key], exist_ok=True)
    return Config(**values)


def _known(kind: Any, document: Mapping[str, Any]) -> dict:
    names = {f.name for f in fields(kind)}
    return {key: value for key, value in document.items() if key in names and value is not None}


def _from_environment(environ: Mapping[str, str]) -> dict:
    names = [name for name in environ.get("DOMINO_VARIABLES", "").split(",") if name]
    digests = environ.get("DOMINO_TOKEN_SHA256", "").replace(",", " ").split()
    return {
        "replica_dir": environ.get("DOMINO_REPLICA_DIR") or os.path.join(tempfile.gettempdir(), "domino-replica"),
        "socket": environ.get("DOMINO_SOCKET", ""),
        "port": int(environ.get("DOMINO_PORT") or 0),
        "probe_port": int(environ.get("DOMINO_PROBE_PORT") or 0),
        # What Seldon Core's operator tells its containers counts too.
        "seldon_port": int(
            environ.get("DOMINO_SELDON_PORT") or environ.get("PREDICTIVE_UNIT_HTTP_SERVICE_PORT") or 9000
        ),
        "metrics_port": int(environ.get("PREDICTIVE_UNIT_METRICS_SERVICE_PORT") or 6000),
        "working_dir": environ.get("DOMINO_WORKING_DIR") or os.getcwd(),
        "pid": int(environ.get("DOMINO_MASTER") or os.getpid()),
        "open_to_all": environ.get("DOMINO_AUTH") == "none",
        "token_digests": tuple(digest.lower() for digest in digests),
        "secrets": {name: environ[name] for name in names if environ.get(name)},
    }
