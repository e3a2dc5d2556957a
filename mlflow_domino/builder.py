"""What builds images, keeps them and sends them to registries: a container engine, or a program that needs none."""

from __future__ import annotations

import abc
import datetime
import os
import posixpath
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mlflow_domino.errors import DominoError, EnvironmentFailed, Failed, Unavailable

__all__ = ["Builder", "Image", "builder_of", "moment", "not_pulled", "refused", "split", "unpack", "whole_name"]

Log = Callable[[str], None]

_DENIED = ("unauthorized", "denied", "authentication", "no basic auth", "401", "403", "forbidden")
_SILENT = ("refused", "no such host", "timeout", "timed out", "unreachable", "i/o", "reset by peer", "gave http")


@dataclass(frozen=True)
class Image:
    """An image that a builder holds.

    Attributes
    ----------
    id : str
        Digest of its configuration, ``sha256:…``.
    names : tuple of str
        ``repository:tag``, as they were given.
    layers : tuple of str
        Digests of its layers' content, the lowest first.
    size : int
        In bytes, of all layers.
    built_s : float
        When it was built here, in seconds since the epoch.
    """

    id: str
    names: tuple[str, ...]
    layers: tuple[str, ...]
    size: int
    built_s: float


class Builder(abc.ABC):
    """Builds images on this machine.

    A name without a registry is one of Docker Hub's, as Docker has it; ``localhost`` and loopback addresses are
    registries that need no TLS. Who may read or write a registry is what ``docker login`` wrote down, unless said.
    """

    @abc.abstractmethod
    def check(self) -> str:
        """Return the builder's name and version.

        Raises
        ------
        Unavailable
            It does not work here; with the reason.
        """

    @abc.abstractmethod
    def image(self, reference: str) -> Image | None:
        """Return an image that is here, None where there is none of that name or id."""

    @abc.abstractmethod
    def images(self, repository: str) -> list[Image]:
        """Return the images here of a repository, of all where it is empty; one with two tags is there once."""

    @abc.abstractmethod
    def pull(self, reference: str, log: Log) -> Image:
        """Have an image here; from its registry where it is not.

        Raises
        ------
        EnvironmentFailed
            With the registry's own words.
        """

    @abc.abstractmethod
    def run(self, image: str, command: Sequence[str]) -> str:
        """Run a program to its end in an image that is here; return what it printed. It may have no network.

        Raises
        ------
        Failed
            With what it said, when it ended with another code than 0 or could not be started.
        """

    @abc.abstractmethod
    def build(self, context: IO[bytes], tag: str, *, arguments: Mapping[str, str], log: Log) -> Image:
        """Build an image from a tar archive with its ``Dockerfile``, on images that are here.

        Raises
        ------
        EnvironmentFailed
            With the end of the builder's log.
        """

    @abc.abstractmethod
    def extract(self, image: str, path: str, into: Path) -> None:
        """Copy what a folder of an image holds into an empty folder of this machine.

        Files are the caller's, links that lead out of the folder and special files are left out.

        Raises
        ------
        NotFound
            There is no such image or folder.
        """

    @abc.abstractmethod
    def tag(self, image: str, reference: str) -> None:
        """Give an image that is here one more name."""

    @abc.abstractmethod
    def push(self, reference: str, log: Log, *, user: tuple[str, str] | None = None) -> str:
        """Send an image to the registry that its name says; return its digest there.

        Parameters
        ----------
        user : tuple of str
            User and password, which are not kept, and seen by no other user of the machine.

        Raises
        ------
        Failed
            The registry refuses it.
        Unavailable
            The registry does not answer.
        """

    @abc.abstractmethod
    def remove_image(self, reference: str) -> None:
        """Remove a name of an image, and the image with its last one; one that is not there is no error."""


def builder_of() -> Builder:
    """Return what builds images here: the container engine where one answers, wherever that is, buildah otherwise.

    Raises
    ------
    Unavailable
        There is neither.
    """
    from mlflow_domino.buildah import Buildah  # here: both know this module
    from mlflow_domino.engine import Engine

    reasons = []
    for builder in (Engine(anywhere=True), Buildah()):
        try:
            builder.check()
            return builder
        except DominoError as error:
            reasons.append(error.message)
    raise Unavailable(
        f"Nothing here builds images. {' '.join(reasons)} One of them is enough, and buildah needs no service and no root."
    )


def split(reference: str) -> tuple[str, str]:
    """Return repository and tag (or digest) of an image's name; a port before the last slash is no tag."""
    repository, at, digest = reference.partition("@")
    if at:
        return repository, digest
    head, slash, last = reference.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{head}{slash}{name}", tag or "latest"


def whole_name(reference: str) -> str:
    """Return the name that Docker gives an image's short name; a whole one, or an id, as it is."""
    first, slash, _ = reference.partition("/")
    if reference.startswith("sha256:") or (slash and ("." in first or ":" in first or first == "localhost")):
        return reference
    return f"docker.io/{reference}" if slash else f"docker.io/library/{reference}"


def moment(time: str) -> float:
    """Return the epoch's seconds of a time as images have it, in UTC and with any number of digits; 0 of none."""
    try:
        found = datetime.datetime.strptime(time[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return 0.0
    return max(0.0, found.timestamp())


def refused(reference: str, said: str, *, login: str, log_tail: str = "") -> Failed:
    """Return the error of a push that failed.

    Parameters
    ----------
    said : str
        The registry's or the builder's words.
    login : str
        The command that makes credentials known.
    """
    registry = reference.partition("/")[0]
    words = said.lower()
    if any(word in words for word in _DENIED):
        return Failed(
            f"{registry} refuses the push of {reference}: {said}. `{login} {registry}` as somebody who may push there."
        )
    if any(word in words for word in _SILENT):
        return Unavailable(
            f"The registry {registry} does not answer, so {reference} cannot be pushed: {said}. Try again when it does.",
            log_tail=log_tail,
        )
    return Failed(f"push {reference} failed: {said}.", log_tail=log_tail)


def unpack(archive: IO[bytes], into: Path) -> None:
    """Write files, folders and inner links of a tar stream below `into`.

    Nothing is believed of the archive: who wrote it may be anybody who may push to a registry.
    """
    root = into.resolve()
    with tarfile.open(fileobj=archive, mode="r|*") as tar:
        for member in tar:
            path = _inside(root, member.name)
            if path is None or os.path.lexists(path):
                continue
            if member.isdir():
                path.mkdir()
            elif member.issym() and (path.parent / member.linkname).resolve().is_relative_to(root):
                path.symlink_to(member.linkname)
            elif member.islnk():
                first = _inside(root, member.linkname)
                if first is not None and first.is_file() and not first.is_symlink():
                    shutil.copy(first, path)
            elif member.isreg():
                content = tar.extractfile(member)
                assert content is not None
                with path.open("xb") as file:
                    shutil.copyfileobj(content, file)
                path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _inside(root: Path, name: str) -> Path | None:
    """Return where a member of an archive belongs, in a folder that is there; None for one that leads out of `root`."""
    relative = posixpath.normpath(name)
    if relative.startswith(("/", "../")) or relative in (".", ".."):
        return None
    path = root / relative
    if not path.parent.resolve().is_relative_to(root):
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def not_pulled(reference: str, said: str, *, login: str) -> EnvironmentFailed:
    """Return the error of an image that cannot be had."""
    return EnvironmentFailed(
        f"The image {reference} is not on this machine, and cannot be pulled: {said}. Look at its name, and at `{login}`."
    )
