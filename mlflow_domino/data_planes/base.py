"""The contract of a data plane: where replicas run, and how requests reach them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_domino.config import Secrets, Settings
from mlflow_domino.errors import Unsupported
from mlflow_domino.models import Artifact, Endpoint, Status, Token, Version, World
from mlflow_domino.store import Records

__all__ = ["DataPlane", "Log", "Observation", "World"]

#: Takes a line for the person who waits, and for the build's log.
Log = Callable[[str], None]


@dataclass(frozen=True)
class Observation:
    """What a version really is at this moment.

    Attributes
    ----------
    status : Status
        `STARTING`, `RUNNING`, `STOPPED`, `FAILED`, `STALLED` or `UNREACHABLE`.
    reason : str
        Why, for a person; empty when there is nothing to say.
    ready : int
        Replicas that answer.
    failed : int
        Replicas that could not load or warm up; `reason` says why.
    log_tail : str
        Last lines of the log of the replica that explains the status, redacted.
    """

    status: Status
    reason: str = ""
    ready: int = 0
    failed: int = 0
    log_tail: str = ""


class DataPlane(abc.ABC):
    """Runs versions and routes requests to them.

    To write: `up`, `down`, `alive`, `render`, `url`, `build`, `start`, `stop`, `discard`, `forget`, `observe`, `publish`,
    `drain`, `put_tokens`, `logs`. Every method is safe to repeat, and works from what it finds: the caller may have been killed half-way
    through the same call. What is created is labelled with the version's id, so that `stop` finds it without a note.
    """

    name: str
    #: What whoever deploys here should know, such as that tokens travel in clear; empty where there is nothing.
    caution: str = ""
    #: Why asynchronous endpoints cannot be here; empty where they can.
    no_async: str = ""
    #: Seconds between two looks of whoever waits for what `start` began.
    look_s: float = 0.03

    def reach(self) -> None:
        """See within 3 s whether anything answers where the data plane is.

        Raises
        ------
        Unreachable
            Nothing does.
        """
        return

    def obstacle(self) -> str:
        """Say why nobody can call what runs here, and what to do about it; empty where they can."""
        return ""

    def remark(self) -> str:
        """Say what whoever looks at the data plane should know, such as that its gateway is an old one."""
        return ""

    def prepare(self) -> None:
        """Refuse at once what could not be carried through: called before anything is made for a new endpoint.

        Raises
        ------
        Forbidden
            The data plane does not let us; naming every right that is missing.
        """
        return

    @abc.abstractmethod
    def up(self, world: World, log: Log) -> bool:
        """Start what must run before anything else can (supervisor, gateway), and all versions whose target is to run.

        Parameters
        ----------
        world : World
        log : callable
            Told what takes its time.

        Returns
        -------
        bool
            Whether something had to be started.
        """

    @abc.abstractmethod
    def down(self) -> None:
        """Stop everything of this data plane; the caller has drained it. Records and files stay."""

    @abc.abstractmethod
    def alive(self) -> bool:
        """Whether what `up` starts is there now."""

    @abc.abstractmethod
    def render(self, world: World, endpoint: Endpoint, version: Version, secrets: Secrets) -> dict[str, str]:
        """Return, by name, the files that `start` and `publish` would write; nothing is done, nothing in them is secret.

        Parameters
        ----------
        world : World
            With the version in it, as if it ran already.
        version : Version
            Built or not; what only a build can tell is described.
        secrets : Secrets
            Of the version; names of variables may be shown.
        """

    def render_context(self, version: Version, secrets: Secrets, folder: Path, log: Log) -> str:
        """Write what images of the version would be built of into a folder that has its source; nothing where there are none.

        Nothing is built and nothing pulled. Returns why there is nothing, empty where it is as it should be.

        Raises
        ------
        EnvironmentFailed
            With the resolver's own words.
        """
        return ""

    @abc.abstractmethod
    def url(self) -> str:
        """Return scheme, host and port that callers use, such as ``http://127.0.0.1:8420``."""

    @abc.abstractmethod
    def build(self, version: Version, secrets: Secrets, log: Log) -> Artifact:
        """Make whatever replicas of the version start from. Its source has been fetched into its folder.

        Raises
        ------
        EnvironmentFailed
            With the resolver's own words.
        """

    def restore(self, version: Version, log: Log) -> bool:
        """Have a version's source in its folder here, where the data plane can; false where nothing had to be done."""
        return False

    @abc.abstractmethod
    def start(self, endpoint: Endpoint, version: Version) -> None:
        """Bring the version to exactly ``version.replicas`` replicas, and return without waiting for them.

        Surplus replicas end at once: the caller has drained them.
        """

    @abc.abstractmethod
    def stop(self, version: Version) -> None:
        """End all replicas of the version and wait until nothing of them is left; the caller has drained them."""

    @abc.abstractmethod
    def discard(self, version: Version) -> None:
        """Remove what `build` and the fetch left of the version. Shared parts (environments) stay."""

    @abc.abstractmethod
    def forget(self, endpoint: Endpoint) -> None:
        """Remove what is kept for an endpoint beside its versions: tokens, logs."""

    @abc.abstractmethod
    def observe(self, versions: Sequence[Version]) -> list[Observation]:
        """Tell what each of the versions is, within 3 s whatever has happened; never raises for a dead replica."""

    @abc.abstractmethod
    def publish(self, world: World) -> None:
        """Route requests as the records say; return when every gateway has accepted it.

        A version whose target is to run stays reachable for the requests that it has, routed or not.
        """

    @abc.abstractmethod
    def drain(self, version: Version, timeout_s: float, *, replicas: Sequence[int] | None = None) -> bool:
        """Wait until no request is in flight on the version, or on some of its replicas; false when time ran out."""

    @abc.abstractmethod
    def put_tokens(self, endpoint: Endpoint, tokens: Sequence[Token], versions: Sequence[Version], say: Log) -> None:
        """Make exactly `tokens` (and the gateway's own) valid; return when every running replica has taken them.

        Parameters
        ----------
        versions : sequence of Version
            Whose replicas are waited for.
        say : callable
            Gets a line where that takes a while.

        Raises
        ------
        Unavailable
            When a replica does not acknowledge in time; the tokens are written all the same.
        """

    def own_token(self, endpoint: Endpoint) -> str:
        """Return the gateway's own token for an endpoint, with which whoever may read it looks after predictions.

        Raises
        ------
        Unsupported
            There is none.
        """
        raise Unsupported(f"The data plane {self.name!r} has no token of its own for endpoints.")

    def own_records(self) -> Records | None:
        """Return the records that the data plane itself keeps; None: they are in the home."""
        return None

    def leftovers(self, before_s: float) -> list[tuple[str, int]]:
        """Return name and bytes of each thing of the data plane's own that nothing uses, and that was made before a time."""
        return []

    def remove_leftover(self, name: str) -> None:
        """Remove what `leftovers` named."""
        raise Unsupported(f"The data plane {self.name!r} keeps nothing of the name {name!r}.")

    def requirements(self, settings: Settings) -> tuple[str, ...]:
        """Return the requirements in the setting `environment`, which may name other things on some data planes."""
        return settings.environment

    def export(self, version: Version, reference: str, log: Log, *, user: tuple[str, str] | None = None) -> str:
        """Push the image of a built version under another name; return its digest.

        Raises
        ------
        Unsupported
            Versions of this data plane have no image.
        """
        raise Unsupported(
            f"Versions on the data plane {self.name!r} have no image to export; create the endpoint on one that makes "
            "images, such as -t domino:/docker."
        )

    @abc.abstractmethod
    def logs(self, version: Version, *, build: bool = False, replica: int | None = None) -> list[Path]:
        """Return the files with the version's logs, of the build or of its replicas, in order."""
