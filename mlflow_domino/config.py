"""What can be set with `-C key=value`: one table that parses, checks, and writes the help.

`Settings` is that table. A field is a key; its metadata holds the parser (with its bounds and unit) and one line of
help. Every value may come as a string, which is all that MLflow's CLI can pass, or as the type itself from Python.
Values of variables, and index URLs (which may hold a password), are no settings: they are `Secrets`, kept apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_domino.errors import InvalidInput
from mlflow_domino.parsers import Parser, boolean, choice, decimal, listing, size, text, whole
from mlflow_domino.repositories import git_repos
from mlflow_domino.volumes import Volume, volumes, volumes_from_json

__all__ = ["Secrets", "Settings", "describe", "parse", "settings_from_json", "settings_to_json"]


def option(default: Any, parser: Parser, help: str) -> Any:  # noqa: A002 - the word of every option library
    return field(default=default, metadata={"parser": parser, "help": help})


def _links(value: Any) -> tuple[str, ...]:
    found: tuple[str, ...] = listing(r"[^\x00-\x1f]{1,2048}", "folders or URLs")(value)
    if any(re.search(r"://(?!(\$\{[A-Z0-9_]+\}:?)+@)[^/\s]*@", link) for link in found):  # settings are shown
        raise ValueError("write ${NAME} in place of user and password, and set it with -C env.NAME=USER:PASSWORD")
    return found


_links.__doc__ = "list of folders or URLs"

_LINE = text(r"[^\x00]{0,4096}", "text of at most 4096 characters")
_RELATIVE = text(r"(?!/)(?!.*(^|/)\.\.(/|$))[^\x00-\x1f]{1,1024}", "a path inside the project")
_NAME = text(r"[^\W\d]\w{0,254}", "a Python name")
_USER = text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "letters, digits, '.', '_' or '-'")


@dataclass(frozen=True)
class Settings:
    """Settings of an endpoint, copied whole into each of its versions. Times in seconds, sizes in bytes."""

    description: str = option("", _LINE, "what the endpoint is for")
    file: str = option("", _RELATIVE, "script of a project (-m DIR or git+URL), relative to it")
    function: str = option("predict", _NAME, "function in `file` that answers requests")
    exclude_files: tuple[str, ...] = option(
        (), listing(r"[^\x00-\x1f]{1,1024}", "patterns"), "files of the project to leave out, as in .modelignore"
    )
    git_repos: tuple[str, ...] = option(
        (), git_repos, "Git repositories that become folders of the project, fetched when a version is made"
    )
    environment: tuple[str, ...] = option(
        (),
        listing(r"[^\x00-\x1f]{1,1024}", "requirements"),
        "requirements of a project's environment, such as pandas==2.2.3,scikit-learn; with Docker also an image",
    )
    python_version: str = option(
        "", text(r"3\.\d{1,2}(\.\d{1,3})?", "a version such as 3.11"), "interpreter to use instead of the model's own"
    )
    python_downloads: bool = option(True, boolean, "let uv download an interpreter that is not on this machine")
    install_harness_packages: bool = option(
        True,
        boolean,
        "add uWSGI, Flask, Six and prometheus-client where the environment lacks them, with is_async seldon-core beside it",
    )
    find_links: tuple[str, ...] = option((), _links, "where wheels are found beside the index")
    offline: bool = option(False, boolean, "use no network while building: only find_links and uv's cache")
    hardware_tier: str = option(
        "",
        text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}|", "a tier's name"),
        "limits of a replica: [hardware_tiers.NAME] of config.toml",
    )
    replicas: int = option(1, whole(1, 32), "running instances of a version")
    workers: int = option(1, whole(1, 64), "processes of a replica")
    threads: int = option(1, whole(1, 256), "requests that a process runs at once")
    preload: str = option(
        "auto",
        choice("auto", "always", "never"),
        "load the model once for all workers, which share its memory, where that is safe (always: projects too, with one "
        "native thread per worker)",
    )
    max_queue: int = option(256, whole(0, 4096), "requests that may wait for a replica before callers get 429")
    max_batch_size: int = option(
        1, whole(1, 256), "rows of concurrent requests that a process joins into one prediction (1: never)"
    )
    max_batch_delay_ms: float = option(
        5.0, decimal(0, 1000), "longest wait of a request to be joined, in ms; none when nobody else is there"
    )
    worker_max_requests: int = option(0, whole(0, 10**9), "recycle a process after so many requests (0: never)")
    worker_max_memory: int = option(0, size(0, 1 << 44), "recycle a process that is larger than this (0: never)")
    request_timeout_s: float = option(60.0, decimal(0.1, 86400), "time limit of a request, then 504")
    max_body: int = option(10 << 20, size(1, 1 << 30), "largest request body, then 413")
    drain_s: float = option(30.0, decimal(0, 86400), "time that an old version gets to finish its requests")
    start_timeout_s: float = option(120.0, decimal(1, 86400), "time that a version gets to become ready")
    initial_delay_s: int = option(0, whole(0, 86400), "Kubernetes: time before a replica is first asked for its health")
    health_period_s: int = option(10, whole(1, 3600), "Kubernetes: time between two looks at a replica's health")
    health_timeout_s: int = option(5, whole(1, 3600), "Kubernetes: time that a replica gets to answer for its health")
    failure_threshold: int = option(
        6, whole(1, 1000), "Kubernetes: failed looks in a row after which a replica is started again"
    )
    strict_node_anti_affinity: bool = option(
        False, boolean, "Kubernetes: never two replicas of a version on one node, not even for want of nodes"
    )
    read_only_root: str = option(
        "auto",
        choice("auto", "true", "false"),
        "Kubernetes: replicas can write to /tmp only; auto is true for models, false for projects",
    )
    volumes: tuple[Volume, ...] = option(
        (), volumes, "folders of the node to mount (hostPath), read-only unless readOnly is false"
    )
    is_async: bool = option(
        False, boolean, "queue requests, to be answered later: POST /api/modelApis/async/v1/{id}; fixed by create"
    )
    async_timeout_s: float = option(
        1800.0, decimal(0.1, 86400), "time limit of an asynchronous prediction, then it is failed"
    )
    async_keep_s: float = option(
        172800.0, decimal(1, 31536000), "time that an asynchronous prediction waits at most, and is kept when it ended"
    )
    async_max_attempts: int = option(
        5, whole(1, 100), "runs of an asynchronous prediction whose replica was lost, before it is failed"
    )
    async_max_queued: int = option(
        200000, whole(1, 10**8), "asynchronous predictions that may wait before callers get 429"
    )
    keep_versions: int = option(10, whole(1, 1000), "versions that are kept for rollback")
    routing_mode: str = option("basic", choice("basic", "advanced"), "advanced adds labels/prod, moved by `promote`")
    strict_schema: bool = option(True, boolean, "refuse input that MLflow would change in silence")
    warmup_file: str = option(
        "", _RELATIVE, "JSON body in the project or model for the warm-up (default: the model's own example)"
    )
    debug: bool = option(False, boolean, "tracebacks in the answers")
    log_http_request_response: bool = option(
        False, boolean, "write bodies of requests and answers to the replica's log"
    )
    username: str = option("domino", _USER, "owner, a part of /mnt/<username>/<project> in images")
    project: str = option("project", _USER, "project, a part of /mnt/<username>/<project> in images")

    @property
    def ready_within_s(self) -> float:
        """Time in which replicas are to take requests, from the start on."""
        return self.start_timeout_s + self.initial_delay_s


@dataclass(frozen=True)
class Secrets:
    """What may hold a secret, kept in a file of mode 0600 and never shown.

    Attributes
    ----------
    variables : mapping of str to str
        The endpoint's environment variables.
    index_url, extra_index_url : str, tuple of str
        Package indexes; they may carry a user and a password.
    """

    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    index_url: str = field(default="", repr=False)
    extra_index_url: tuple[str, ...] = field(default=(), repr=False)


_FIELDS = {f.name: f for f in dataclasses.fields(Settings)}
_SECRET_HELP = {
    "env": ("JSON object", "variables of the endpoint, replacing all; env.NAME=VALUE sets one"),
    "index_url": ("URL", "package index instead of the machine's own; may hold a password"),
    "extra_index_url": ("list of URLs", "more package indexes"),
    "config": ("@file.yaml", "settings from a file; keys beside it win"),
}
#: Where Domino's API has another word for the same thing.
_DOMINOS = {
    "environment_variables": "env",
    "hardware_tier_id": "hardware_tier",
    "override_request_timeout_secs": "request_timeout_s",
}
_DOMINOS_HEALTH = {
    "initialDelaySeconds": "initial_delay_s",
    "periodSeconds": "health_period_s",
    "timeoutSeconds": "health_timeout_s",
    "failureThreshold": "failure_threshold",
}
_RESERVED = re.compile(r"DOMINO_\w*|PATH|HOME|LD_\w*|PYTHON\w*|UWSGI_\w*", re.IGNORECASE)


def parse(
    config: Mapping[str, Any] | None, *, base: Settings | None = None, base_secrets: Secrets | None = None
) -> tuple[Settings, Secrets]:
    """Check what a caller set, on top of what was set before.

    Parameters
    ----------
    config : mapping of str to str or object, or None
        As from `-C`; keys in snake_case or in the camelCase of Domino's API.
    base, base_secrets
        Settings and secrets of the endpoint so far.

    Raises
    ------
    InvalidInput
        Naming the key, what is wanted, and for an unknown key the nearest one.
    """
    flat = _flatten(config or {})
    values: dict[str, Any] = {}
    secrets = base_secrets or Secrets()
    for key, value in flat.items():
        if key == "env" or key.startswith("env."):
            secrets = dataclasses.replace(secrets, variables=_variables(key, value, secrets.variables))
        elif key in ("index_url", "extra_index_url"):
            secrets = _with_index(secrets, key, value)
        elif key in _FIELDS:
            values[key] = _parse_one(key, value)
        else:
            raise InvalidInput(_unknown(key))
    return _fit_together(dataclasses.replace(base or Settings(), **values)), secrets


def _fit_together(settings: Settings) -> Settings:
    if settings.is_async and settings.volumes:
        named = ", ".join(volume.name for volume in settings.volumes)
        raise InvalidInput(f"volumes: an asynchronous endpoint mounts none ({named}); leave out volumes or is_async.")
    working = f"/mnt/{settings.username}/{settings.project}"
    for volume in settings.volumes:
        if f"{working}/".startswith(f"{volume.mount_path}/"):
            raise InvalidInput(f"volumes: {volume.name} would hide the project in {working}; mount it elsewhere.")
    return settings


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise InvalidInput(f"config: a mapping of keys to values is wanted, not {type(config).__name__}")
    flat: dict[str, Any] = {}
    if "config" in config:
        flat.update(_flatten(_read_file(config["config"])))
    for key, value in config.items():
        if key in ("healthCheck", "health_check"):
            flat.update(_health(value))
        elif key != "config":
            flat[_snake(str(key))] = value
    return flat


def _read_file(value: Any) -> Mapping[str, Any]:
    import yaml  # only here: most verbs never read a file of settings

    if not isinstance(value, str) or not value.startswith("@"):
        raise InvalidInput("config: @ and the path of a YAML file are wanted, such as config=@settings.yaml")
    path = Path(value[1:])
    try:
        loaded = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"config: {path} cannot be read as YAML: {error}") from error
    if not isinstance(loaded, Mapping) or "config" in loaded:
        raise InvalidInput(f"config: {path} must hold one mapping of keys to values, and no `config` in it")
    return loaded


def _snake(key: str) -> str:
    if key.startswith("env."):
        return key
    snake = re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key).lower()
    return _DOMINOS.get(snake, snake)


def _health(value: Any) -> dict[str, Any]:
    """Return the settings in Domino's object `healthCheck`."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, Mapping):
        raise InvalidInput(f"healthCheck: a JSON object is wanted, with {', '.join(_DOMINOS_HEALTH)}.")
    for key in value:
        if key not in _DOMINOS_HEALTH:
            raise InvalidInput(f"healthCheck: unknown key {_short(key)!r}; there are: {', '.join(_DOMINOS_HEALTH)}.")
    return {_DOMINOS_HEALTH[key]: given for key, given in value.items()}


def _parse_one(key: str, value: Any) -> Any:
    try:
        return _FIELDS[key].metadata["parser"](value)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{key}={_short(value)}: {error}.") from None


def _short(value: Any) -> str:
    shown = re.sub(r"(?<=://)[^/\s]*@", "", str(value))
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _variables(key: str, value: Any, before: Mapping[str, str]) -> dict[str, str]:
    if key == "env":
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise InvalidInput('env: a JSON object is wanted, such as {"NAME": "value"}.') from None
        if isinstance(value, Sequence) and all(isinstance(v, Mapping) and {"key", "value"} >= set(v) for v in value):
            value = {v.get("key"): v.get("value") for v in value}  # the list of Domino's API
        if not isinstance(value, Mapping):
            raise InvalidInput('env: a JSON object is wanted, such as {"NAME": "value"}.')
        new = dict(value)
    else:
        new = {**before, key[len("env.") :]: value}
    for name, content in new.items():
        _check_variable(name, content)
    return new


def _check_variable(name: Any, content: Any) -> None:
    """Domino's own rules: a letter first, letters, digits and underscores, 64 KiB; the value is never repeated."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,254}", name):
        raise InvalidInput(f"env.{_short(name)}: a name starts with a letter and holds letters, digits and '_'.")
    if _RESERVED.fullmatch(name):
        raise InvalidInput(f"env.{name}: this name is reserved for the replica's own use; choose another.")
    if not isinstance(content, str) or "\0" in content or len(content.encode("utf-8", "surrogateescape")) > 65536:
        raise InvalidInput(f"env.{name}: the value must be text without null bytes, of at most 64 KiB.")


def _with_index(secrets: Secrets, key: str, value: Any) -> Secrets:
    pattern = r"(https?|file)://[^\s\x00-\x1f]{1,2048}"
    try:
        if key == "index_url":
            return dataclasses.replace(secrets, index_url=text(pattern + "|", "a URL")(value))
        return dataclasses.replace(secrets, extra_index_url=listing(pattern, "URLs")(value))
    except ValueError:
        raise InvalidInput(f"{key}: http://, https:// or file:// URLs are wanted.") from None


def _unknown(key: str) -> str:
    known = [*_FIELDS, *_SECRET_HELP]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key {_short(key)!r}: {hint}`mlflow deployments help -t domino` lists all keys."


def describe() -> list[tuple[str, str, str, str]]:
    """Return (key, type, default, help) of every key, in the order of the table."""
    rows = []
    for name, spec in _FIELDS.items():
        default = ",".join(spec.default) if isinstance(spec.default, tuple) else str(spec.default)
        default = default.lower() if isinstance(spec.default, bool) else default
        rows.append((name, str(spec.metadata["parser"].__doc__), default, str(spec.metadata["help"])))
    rows += [(name, kind, "", help_) for name, (kind, help_) in _SECRET_HELP.items()]
    return rows


def settings_to_json(settings: Settings) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(settings).items()}


def settings_from_json(document: Mapping[str, Any]) -> Settings:
    """Read settings that some release wrote: keys that it did not know take their defaults."""
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items() if k in _FIELDS}
    known["volumes"] = volumes_from_json(known.get("volumes", ()))
    return Settings(**known)
