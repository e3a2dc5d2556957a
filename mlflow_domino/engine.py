"""The container engine of this machine, through Docker's API: what we ask of it, in our own words and errors."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from mlflow_domino.errors import EnvironmentFailed, Failed, NotFound, Unavailable, Unsupported

__all__ = ["Engine"]

_TIMEOUT_S = 60
_BUILD_S = 3600
_PROBE_S = 2.0
_TAIL_LINES = 40


class Engine:
    """Talks to the engine that ``DOCKER_HOST`` or Docker's current context names; connects when first needed."""

    @functools.cached_property
    def _api(self) -> Any:
        import docker  # here: takes a quarter of a second
        import docker.errors
        from docker.context import ContextAPI

        context = None if os.environ.get("DOCKER_HOST") else ContextAPI.get_current_context()
        host = context.Host if context is not None else None
        named = os.environ.get("DOCKER_HOST") or host or ""
        if named.startswith(("tcp://", "http://", "https://", "ssh://")):
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
        """Return the engine's name and version, when it answers.

        Raises
        ------
        Unavailable
            After some seconds at most.
        """
        with self._errors("asked whether it is there"):
            said = self._api.version()
            return f"{(said.get('Platform') or {}).get('Name') or 'Docker'} {said.get('Version')}"

    # ---- images ----------------------------------------------------------------------------------------------------

    def image(self, reference: str) -> dict[str, Any] | None:
        """Return what the engine knows of an image that it holds, None where it holds none of that name."""
        try:
            with self._errors("asked for an image"):
                found: dict[str, Any] = self._api.inspect_image(reference)
                return found
        except NotFound:
            return None

    def pull(self, reference: str, log: Callable[[str], None]) -> dict[str, Any]:
        """Have an image here; from its registry, with the credentials that Docker knows, where it is not.

        Raises
        ------
        EnvironmentFailed
            With the registry's own words.
        """
        found = self.image(reference)
        if found is not None:
            return found
        log(f"pulling {reference} …")
        repository, tag = _split(reference)
        try:
            with self._errors(f"to pull {reference}"):
                self._follow(self._api.pull(repository, tag=tag, stream=True, decode=True), log, f"pull {reference}")
        except (NotFound, Failed) as error:
            raise EnvironmentFailed(
                f"The image {reference} is not on this machine, and cannot be pulled: {error}. Look at its name, and at "
                "`docker login`."
            ) from error
        found = self.image(reference)
        if found is None:
            raise EnvironmentFailed(f"The image {reference} was pulled, and is not there; look at `docker images`.")
        return found

    def build(
        self, context: IO[bytes], tag: str, *, arguments: Mapping[str, str], log: Callable[[str], None]
    ) -> dict[str, Any]:
        """Build an image from a tar archive with its ``Dockerfile``.

        Raises
        ------
        EnvironmentFailed
            With the end of the builder's log.
        """
        with self._errors(f"to build {tag}"):
            stream = self._api.build(
                fileobj=context, custom_context=True, tag=tag, buildargs=dict(arguments), rm=True, forcerm=True,
                decode=True, timeout=_BUILD_S,
            )  # fmt: skip
            self._follow(stream, log, f"build {tag}")
        built = self.image(tag)
        if built is None:
            raise EnvironmentFailed(f"The image {tag} was built, and is not there; look at `docker images`.")
        return built

    def images(self, repository: str) -> list[dict[str, Any]]:
        """Return what the engine knows of each image of a repository; one with two tags is there once."""
        with self._errors("asked for images"):
            found = self._api.images(name=repository, quiet=True)
            return [self._api.inspect_image(identity) for identity in dict.fromkeys(found)]

    def tag(self, image: str, reference: str) -> None:
        repository, tag = _split(reference)
        with self._errors(f"to name an image {reference}"):
            self._api.tag(image, repository, tag)

    def push(self, reference: str, log: Callable[[str], None], *, user: tuple[str, str] | None = None) -> str:
        """Send an image to its registry; return its digest there.

        Parameters
        ----------
        user : tuple of str
            User and password, which are not kept; None for what Docker knows.
        """
        repository, tag = _split(reference)
        login = {"username": user[0], "password": user[1]} if user else None
        with self._errors(f"to push {reference}"):
            stream = self._api.push(repository, tag=tag, stream=True, decode=True, auth_config=login)
            last = self._follow(stream, log, f"push {reference}")
        return str(last.get("Digest", ""))

    def remove_image(self, reference: str) -> None:
        """Remove a name of an image, and the image with its last one; one that is not there is no error."""
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
        with self._errors(f"to run {command[0]} in {image}"):
            binds = [f"{here}:{there}" for here, there in (folders or {}).items()]
            made = self._api.create_container(
                image, entrypoint=[command[0]], command=list(command[1:]), user=user or None, network_disabled=True,
                host_config=self._api.create_host_config(binds=binds),
            )["Id"]  # fmt: skip
            try:
                self._api.start(made)
                code = self._api.wait(made, timeout=_TIMEOUT_S)["StatusCode"]
                printed: bytes = self._api.logs(made, stdout=True, stderr=bool(code))
            finally:
                self._api.remove_container(made, force=True, v=True)
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

    def _follow(self, stream: Iterator[Any], log: Callable[[str], None], what: str) -> dict[str, Any]:
        """Pass on what a build, pull or push says; return what it said of its result."""
        tail: list[str] = []
        result: dict[str, Any] = {}
        for event in stream:
            if "error" in event:
                raise EnvironmentFailed(f"{what} failed: {str(event['error']).strip()}", log_tail="\n".join(tail))
            result.update(event.get("aux") or {})
            text = event.get("stream") or ("" if "progressDetail" in event else event.get("status")) or ""
            for line in filter(None, map(str.rstrip, str(text).splitlines())):
                tail = [*tail[1 - _TAIL_LINES :], line]
                log(line)
        return result


def _split(reference: str) -> tuple[str, str]:
    """Return repository and tag (or digest) of an image's name; a port before the last slash is no tag."""
    repository, at, digest = reference.partition("@")
    if at:
        return repository, digest
    head, slash, last = reference.rpartition("/")
    name, _, tag = last.partition(":")
    return f"{head}{slash}{name}", tag or "latest"


def _plain(error: BaseException) -> str:
    """Return the engine's own words, without the noise of the layers between."""
    explanation = getattr(error, "explanation", None)
    if explanation:
        text = explanation.decode("utf-8", "replace") if isinstance(explanation, bytes) else str(explanation)
        with contextlib.suppress(ValueError, AttributeError):
            text = json.loads(text).get("message", text)
        return text.strip().rstrip(".")
    return str(error).strip().rstrip(".")
