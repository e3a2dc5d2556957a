"""The container engine of this machine, through Docker's API: what we ask of it, in our own words and errors."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mlflow_domino.builder import Builder, Image, Log, moment, not_pulled, refused, split, unpack
from mlflow_domino.errors import DominoError, EnvironmentFailed, Failed, NotFound, Unavailable, Unsupported
from mlflow_domino.holder import dead, holder

__all__ = ["Engine"]

_TIMEOUT_S = 60
_BUILD_S = 3600
_TAIL_LINES = 40
#: What the builder says when somebody removed an image with a layer that it had taken from its cache.
_GONE = ("unknown parent image ID", "failed to get digest")
#: Label of a container that lives as long as a command needs it: whose it is.
_HOLDER = "mlflow-domino.holder"


class Engine(Builder):
    """Talks to the engine that ``DOCKER_HOST`` or Docker's current context names; connects when first needed.

    Parameters
    ----------
    anywhere : bool
        Whether it may be another machine's, which will do for building.
    """

    def __init__(self, *, anywhere: bool = False) -> None:
        self._anywhere = anywhere

    @functools.cached_property
    def _api(self) -> Any:
        import docker  # here: takes a quarter of a second
        import docker.errors
        from docker.context import ContextAPI

        context = None if os.environ.get("DOCKER_HOST") else ContextAPI.get_current_context()
        host = context.Host if context is not None else None
        named = os.environ.get("DOCKER_HOST") or host or ""
        if not self._anywhere and named.startswith(("tcp://", "http://", "https://", "ssh://")):
            raise Unsupported(
                f"The container engine at {named} is another machine's: the gateway reaches replicas on this one's "
                "loopback. Unset DOCKER_HOST, or switch Docker's context."
            )
        try:
            environment = dict(os.environ)
            if host and not environment.get("DOCKER_HOST"):
                environment["DOCKER_HOST"] = host
            api = docker.DockerClient.from_env(environment=environment, version="auto", timeout=_TIMEOUT_S).api
        except docker.errors.DockerException as error:
            raise Unavailable(
                f"No container engine answers at {named or 'its usual socket'}: {_plain(error)}. Start Docker, or set "
                "DOCKER_HOST; membership in the group `docker` is needed."
            ) from error
        weakref.finalize(self, api.close)
        return api

    def check(self) -> str:
        with self._errors("asked whether it is there"):
            said = self._api.version()
            return f"{(said.get('Platform') or {}).get('Name') or 'Docker'} {said.get('Version')}"

    def shares_kernel(self) -> bool:
        """Whether containers run on this very kernel, so that a socket in a mounted folder leads into them."""
        with self._errors("asked what it runs on"):
            return bool(self._api.info().get("KernelVersion") == os.uname().release)

    # ---- images ----------------------------------------------------------------------------------------------------

    def image(self, reference: str) -> Image | None:
        try:
            with self._errors("asked for an image"):
                return _image(self._api.inspect_image(reference))
        except NotFound:
            return None

    def images(self, repository: str) -> list[Image]:
        with self._errors("asked for images"):
            found = self._api.images(name=repository or None, quiet=True)
        seen = map(self.image, dict.fromkeys(found))  # somebody may remove one meanwhile
        return [image for image in seen if image is not None]

    def pull(self, reference: str, log: Log) -> Image:
        found = self.image(reference)
        if found is not None:
            return found
        log(f"pulling {reference} …")
        repository, tag = split(reference)
        try:
            with self._errors(f"to pull {reference}"):
                self._follow(self._api.pull(repository, tag=tag, stream=True, decode=True), log, f"pull {reference}")
        except (NotFound, Failed) as error:
            raise not_pulled(reference, error.message, login="docker login") from error
        found = self.image(reference)
        if found is None:
            raise EnvironmentFailed(f"The image {reference} was pulled, and is not there; look at `docker images`.")
        return found

    def build(self, context: IO[bytes], tag: str, *, arguments: Mapping[str, str], log: Log) -> Image:
        start = context.tell()
        try:
            self._build(context, tag, arguments, log, cached=True)
        except EnvironmentFailed as error:
            if not any(words in error.message for words in _GONE):
                raise
            log("a layer that was built before has gone meanwhile: building anew …")
            context.seek(start)
            self._build(context, tag, arguments, log, cached=False)
        built = self.image(tag)
        if built is None:
            raise EnvironmentFailed(f"The image {tag} was built, and is not there; look at `docker images`.")
        return built

    def _build(self, context: IO[bytes], tag: str, arguments: Mapping[str, str], log: Log, *, cached: bool) -> None:
        with self._errors(f"to build {tag}"):
            stream = self._api.build(
                fileobj=context, custom_context=True, tag=tag, buildargs=dict(arguments), rm=True, forcerm=True,
                decode=True, timeout=_BUILD_S, use_config_proxy=False, nocache=not cached,
            )  # fmt: skip
            self._follow(stream, log, f"build {tag}")

    def extract(self, image: str, path: str, into: Path) -> None:
        with self._errors(f"for {path} in {image}"), self._container(image, ["/"]) as made:
            stream, _ = self._api.get_archive(made, f"{path}/.")
            with io.BufferedReader(_Stream(stream)) as archive:
                unpack(archive, into)
                while archive.read(1 << 20):  # what follows the last member; or the connection stays open
                    pass

    def tag(self, image: str, reference: str) -> None:
        repository, tag = split(reference)
        with self._errors(f"to name an image {reference}"):
            self._api.tag(image, repository, tag)

    def push(self, reference: str, log: Log, *, user: tuple[str, str] | None = None) -> str:
        repository, tag = split(reference)
        login = {"username": user[0], "password": user[1]} if user else None
        try:
            with self._errors(f"to push {reference}"):
                stream = self._api.push(repository, tag=tag, stream=True, decode=True, auth_config=login)
                last = self._follow(stream, log, f"push {reference}")
        except EnvironmentFailed as error:
            said = error.message.partition(" failed: ")[2]
            raise refused(reference, said, login="docker login", log_tail=error.log_tail) from error
        return str(last.get("Digest", ""))

    def remove_image(self, reference: str) -> None:
        with contextlib.suppress(NotFound), self._errors(f"to remove {reference}"):
            self._api.remove_image(reference, noprune=False)

    # ---- containers --------------------------------------------------------------------------------------------------

    def run(
        self, image: str, command: Sequence[str], *, user: str = "", folders: Mapping[str, str] | None = None
    ) -> str:
        """Run a program to its end in a container of its own, without a network; return what it printed.

        Parameters
        ----------
        folders : mapping of str to str
            Folders of this machine, and where the program finds them.

        Raises
        ------
        Failed
            With what it said, when it ended with another code than 0 or could not be started.
        """
        binds = [f"{here}:{there}" for here, there in (folders or {}).items()]
        with self._errors(f"to run {command[0]} in {image}"), self._container(image, command, user, binds) as made:
            self._api.start(made)
            code = self._api.wait(made, timeout=_TIMEOUT_S)["StatusCode"]
            printed: bytes = self._api.logs(made, stdout=True, stderr=bool(code))
        text = printed.decode("utf-8", "replace")
        if code:
            raise Failed(f"{command[0]} in {image} ended with code {code}", log_tail=text[-2000:])
        return text

    def create(self, name: str, image: str, *, host: Mapping[str, Any], **options: Any) -> None:
        """Make a container; `host` and `options` are those of Docker's API.

        Raises
        ------
        NotFound
            There is no such image.
        """
        with self._errors(f"to make {name}"):
            self._api.create_container(image, name=name, host_config=self._api.create_host_config(**host), **options)

    def start(self, name: str) -> None:
        with self._errors(f"to start {name}"):
            self._api.start(name)

    def container(self, name: str) -> dict[str, Any] | None:
        """Return what the engine knows of a container, None where there is none of that name."""
        try:
            with self._errors("asked for a container"):
                found: dict[str, Any] = self._api.inspect_container(name)
                return found
        except NotFound:
            return None

    def containers(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return (in Docker's short form) all containers that have these labels, running or not."""
        with self._errors("asked for containers"):
            wanted = [f"{key}={value}" for key, value in labels.items()]
            found: list[dict[str, Any]] = self._api.containers(all=True, filters={"label": wanted})
            return found

    def remove(self, name: str) -> None:
        """End a container at once, and remove it; one that is not there is no error."""
        with contextlib.suppress(NotFound), self._errors(f"to remove {name}"):
            self._api.remove_container(name, force=True, v=True)

    # ---- inside ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _container(
        self, image: str, command: Sequence[str], user: str = "", binds: Sequence[str] = ()
    ) -> Iterator[str]:
        """Make a container without a network, and remove it, with those that killed commands left."""
        for left in self._api.containers(all=True, filters={"label": _HOLDER}):
            if dead(left["Labels"][_HOLDER]):
                with contextlib.suppress(DominoError):  # another command is about to remove it, too
                    self.remove(left["Id"])
        made: str = self._api.create_container(
            image, entrypoint=[command[0]], command=list(command[1:]), user=user or None, network_disabled=True,
            host_config=self._api.create_host_config(binds=list(binds)), labels={_HOLDER: holder()},
        )["Id"]  # fmt: skip
        try:
            yield made
        finally:
            self._api.remove_container(made, force=True, v=True)

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        import docker.errors
        import requests

        api = self._api
        try:
            yield
        except docker.errors.NotFound as error:
            raise NotFound(_plain(error)) from error
        except docker.errors.APIError as error:
            raise Failed(f"The container engine refused {doing}: {_plain(error)}") from error
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise Unavailable(f"The container engine at {api.base_url} does not answer: {_plain(error)}") from error

    def _follow(self, stream: Iterator[Any], log: Log, what: str) -> dict[str, Any]:
        """Pass on what a build, pull or push says; return what it said of its result."""
        tail: list[str] = []
        result: dict[str, Any] = {}
        error = ""
        for event in stream:  # to its end, or the connection stays open
            error = error or str(event.get("error") or "").strip()
            result.update(event.get("aux") or {})
            text = event.get("stream") or ("" if "progressDetail" in event else event.get("status")) or ""
            for line in filter(None, map(str.rstrip, str(text).splitlines())):
                tail = [*tail[1 - _TAIL_LINES :], line]
                log(line)
        if error:
            raise EnvironmentFailed(f"{what} failed: {error}", log_tail="\n".join(tail))
        return result


class _Stream(io.RawIOBase):
    """Reads what comes in pieces as a file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(self._pieces, b"")
        read, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(read)] = read
        return len(read)


def _image(document: Mapping[str, Any]) -> Image:
    tagged = str((document.get("Metadata") or {}).get("LastTagTime") or document.get("Created") or "")
    return Image(
        document["Id"],
        tuple(document.get("RepoTags") or ()),
        tuple((document.get("RootFS") or {}).get("Layers") or ()),
        int(document.get("Size") or 0),
        moment(tagged),
    )


def _plain(error: BaseException) -> str:
    """Return the engine's own words, without the noise of the layers between."""
    explanation = getattr(error, "explanation", None)
    if explanation:
        text = explanation.decode("utf-8", "replace") if isinstance(explanation, bytes) else str(explanation)
        with contextlib.suppress(ValueError, AttributeError):
            text = json.loads(text).get("message", text)
        return text.strip().rstrip(".")
    return str(error).strip().rstrip(".")
