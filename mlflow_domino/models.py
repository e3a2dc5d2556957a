"""The things that this package keeps records of, as frozen values.

Words (one for each thing, everywhere): an *endpoint* is what callers address; a *version* is one immutable published
state of it; a *source* is where a version's code comes from; a *replica* is one running instance of a version; a
*data plane* is where replicas run; the *gateway* is the entry to a data plane.
"""

from __future__ import annotations

import enum
import re
import secrets
from dataclasses import dataclass, field

from mlflow_domino.config import Settings
from mlflow_domino.errors import InvalidInput

__all__ = [
    "Artifact",
    "Endpoint",
    "FileSource",
    "Operation",
    "RegistrySource",
    "Repository",
    "Source",
    "Status",
    "Target",
    "Token",
    "Version",
    "World",
    "check_name",
    "new_id",
    "valid_id",
]


def new_id() -> str:
    """Return a new id of 24 hexadecimal digits, the shape that Domino's ids have."""
    return secrets.token_hex(12)


def valid_id(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{24}", text) is not None


def check_name(name: str) -> None:
    """Refuse what cannot be the name of an endpoint."""
    if valid_id(name):
        raise InvalidInput(f"{name!r} has the shape of an endpoint's id; choose another name.")
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?", name):
        raise InvalidInput(
            f"{name[:60]!r}{'…' if len(name) > 60 else ''} is no name for an endpoint: 1 to 100 letters of a-z and A-Z, "
            "digits, '.', '_' and '-' are wanted, the first and the last a letter or digit."
        )


class Status(str, enum.Enum):
    """What an endpoint or a version is doing; Domino's words, verbatim."""

    PREPARING = "Preparing to build"
    BUILDING = "Building"
    READY_TO_RUN = "Ready to run"
    STARTING = "Starting"
    RUNNING = "Running"
    STOPPED = "Stopped"
    FAILED = "Failed"
    UNREACHABLE = "Unreachable"
    STALLED = "Stalled"


class Target(str, enum.Enum):
    """What an endpoint or a version is meant to be."""

    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True)
class RegistrySource:
    """A model of MLflow's, resolved once.

    Attributes
    ----------
    uri : str
        What the caller wrote, such as ``models:/iris@champion``.
    resolved_uri : str
        What it meant then: ``models:/iris/3``, ``models:/m-…`` or ``runs:/…``; a directory stays a directory.
    digest : str
        SHA-256 over the model's files.
    name, version : str or None
        Registered model and its version, where it is one.
    flavor : str
        The flavor that was logged, such as ``sklearn``; ``python_function`` where none is known.
    """

    uri: str
    resolved_uri: str
    digest: str
    name: str | None = None
    version: str | None = None
    flavor: str = "python_function"
    kind: str = "Registry"


@dataclass(frozen=True)
class Repository:
    """A Git repository that became a folder of a project.

    Attributes
    ----------
    folder : str
        Relative to the project.
    uri : str
        What the caller wrote, without credentials.
    commit : str
        That was fetched.
    """

    folder: str
    uri: str
    commit: str


@dataclass(frozen=True)
class FileSource:
    """A project's directory or Git repository, a file in it, and the function to call.

    Attributes
    ----------
    uri : str
        What the caller wrote, without credentials; of a directory its absolute path.
    file : str
        Path of the script, relative to the project.
    function : str
        Name of the function in it.
    digest : str
        SHA-256 over the copied files.
    commit : str or None
        Git commit, where the project is one.
    dirty : tuple of str
        Files that differ from that commit, or that Git does not track; they are part of the version.
    repositories : tuple of Repository
        What `git_repos` put into the project.
    """

    uri: str
    file: str
    function: str
    digest: str
    commit: str | None = None
    dirty: tuple[str, ...] = ()
    repositories: tuple[Repository, ...] = ()
    flavor: str = "file"
    kind: str = "File"


Source = RegistrySource | FileSource


@dataclass(frozen=True)
class Artifact:
    """What the build of a version left behind.

    Attributes
    ----------
    environment : str
        Content hash of the environment (its folder's name on the local data plane).
    lock : str
        SHA-256 of the lock.
    harness : str
        Content hash of the harness that the version serves with, for as long as it lives.
    python_version : str
        Full version of the interpreter, such as ``3.11.7``.
    notes : tuple of str
        What the build decided and a person should know ("python 3.11.4 wanted, 3.11.7 used").
    seldon : str
        Where an asynchronous version has seldon-core: content hash of the environment, or in an image the path of its
        Python; empty for a synchronous one.
    """

    environment: str
    lock: str
    harness: str
    python_version: str
    notes: tuple[str, ...] = ()
    seldon: str = ""


@dataclass(frozen=True)
class Endpoint:
    """What callers address.

    Attributes
    ----------
    target : Target
        Whether it is meant to run.
    latest, promoted, previous : str or None
        Ids of the versions behind ``latest`` and ``labels/prod``, and of the one that ``latest`` showed before.
    next_number : int
        Number of the next version.
    revision : int
        Changes with each write, 0 before the first; a write with an old one is a `Conflict`.
    """

    id: str
    name: str
    data_plane: str
    created_ms: int
    target: Target = Target.RUNNING
    latest: str | None = None
    promoted: str | None = None
    previous: str | None = None
    next_number: int = 1
    settings: Settings = field(default_factory=Settings)
    revision: int = 0


@dataclass(frozen=True)
class Version:
    """One immutable published state of an endpoint; only `status`, `reason`, `target` and `replicas` ever change."""

    id: str
    endpoint_id: str
    number: int
    created_ms: int
    source: Source
    settings: Settings
    status: Status = Status.PREPARING
    reason: str = ""
    target: Target = Target.STOPPED
    replicas: int = 1
    artifact: Artifact | None = None
    revision: int = 0


@dataclass(frozen=True)
class World:
    """All records of one data plane at one moment: what routes and processes are a function of."""

    endpoints: tuple[Endpoint, ...]
    versions: tuple[Version, ...]


@dataclass(frozen=True)
class Token:
    """A caller's token; only its SHA-256 is known, since 64 random letters and digits need no slow hash."""

    id: str
    endpoint_id: str
    name: str
    sha256: str
    created_ms: int


@dataclass(frozen=True)
class Operation:
    """What a verb is about to do, written down before it does it."""

    endpoint_id: str
    verb: str
    phase: str
    pid: int
    started_ms: int
    version_id: str | None = None
