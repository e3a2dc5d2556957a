"""Writes down what would be built: the context of each image into a folder of its own, and the commands that build it."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
import shlex
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

from mlflow_domino.builder import Builder, Image, Log, split, whole_name
from mlflow_domino.errors import DominoError, Failed, NotFound, Unsupported
from mlflow_domino.image import ENDPOINT_IMAGES, PACKAGE_IMAGES, SELDON_IMAGES

__all__ = ["Recorder", "Unseen"]

#: Docker's official images of Python, of which it is known without a look where their interpreter is.
_OFFICIAL = re.compile(
    r"(?:docker\.io/)?(?:library/)?python:(3\.\d+)(\.\d+)?(?:-slim)?(?:-(bookworm|bullseye|trixie))?"
)
_LIBC = {"bullseye": "glibc-2.31", "bookworm": "glibc-2.36", "trixie": "glibc-2.41"}
#: Of an image that is named by its minor version: packages may want a late one, and few an early one.
_PATCH = ".99"

_SCRIPT = """\
#!/bin/sh
# Builds what `create` would build: sh {name} [NAME-OF-THE-IMAGE]. BUILDER is docker, podman or buildah; docker otherwise.
set -eu
cd "$(dirname "$0")"
"""


class Unseen(Failed):
    """An environment image cannot be looked into, and nothing is known of it."""


class Recorder(Builder):
    """Keeps contexts instead of images.

    Parameters
    ----------
    folder : Path
        One folder for each context is made in it.
    builder : callable
        Returns what looks into the images that are here, or raises `Unavailable`; nothing is pulled or built with it.
    """

    def __init__(self, folder: Path, builder: Callable[[], Builder]) -> None:
        self._folder = folder
        self._builder_of = builder
        self._recorded: dict[str, list[str]] = {}
        self._names: dict[str, str] = {}
        self._why = ""

    def script(self, name: str) -> str:
        """Return the commands that build all that was recorded, as a script beside the contexts."""
        lines = []
        for number, (tag, words) in enumerate(self._recorded.items(), 1):
            last = number == len(self._recorded)
            shown = f'"${{1:-{tag}}}"' if last else shlex.quote(tag)
            lines.append(f'"${{BUILDER:-docker}}" build -t {shown} {shlex.join(words)}\n')
        return _SCRIPT.format(name=name) + "".join(lines)

    def check(self) -> str:
        return "a recorder of contexts"

    def image(self, reference: str) -> Image | None:
        if reference in self._recorded or reference in self._names:
            return Image(reference, (reference,), (), 0, 0.0)
        # What there is of our own images is no reason not to write it down again.
        return (
            None if split(reference)[0] in (PACKAGE_IMAGES, SELDON_IMAGES, ENDPOINT_IMAGES) else self._here(reference)
        )

    def pull(self, reference: str, log: Log) -> Image:
        found, official = self.image(reference), _OFFICIAL.fullmatch(reference)
        if found is None and official:
            decides = f"{reference}\0{_known(*official.groups())}"  # what is seen in an image is kept by its id
            found = Image(f"sha256:{hashlib.sha256(decides.encode()).hexdigest()}", (reference,), (), 0, 0.0)
        if found is None:
            raise self._unseen(reference)
        self._names[found.id] = reference
        return found

    def run(self, image: str, command: Sequence[str]) -> str:
        if image in self._recorded:
            return ""  # it is whole or not where it is built
        official = _OFFICIAL.fullmatch(image)
        if official and self._here(image) is None:
            return _known(*official.groups())
        assert self._looks is not None
        return self._looks.run(image, command)

    def build(self, context: IO[bytes], tag: str, *, arguments: Mapping[str, str], log: Log) -> Image:
        name = tag.partition(":")[0].rpartition("/")[2]
        with tarfile.open(fileobj=context) as tar:
            # Our own archive, whose links lead into the image.
            trusted = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
            tar.extractall(self._folder / name, **trusted)  # type: ignore[arg-type]  # noqa: S202 - see above
        # Not every builder takes a short name for one of Docker Hub.
        shown = {
            key: whole_name(self._names[value]) if value in self._names else value for key, value in arguments.items()
        }
        words = [word for key, value in shown.items() for word in ("--build-arg", f"{key}={value}")]
        self._recorded[tag] = [*words, name]
        return Image(tag, (tag,), (), 0, 0.0)

    def extract(self, image: str, path: str, into: Path) -> None:
        if self._looks is None or self._here(image) is None:
            raise self._unseen(self._names.get(image, image))
        self._looks.extract(image, path, into)

    @functools.cached_property
    def _looks(self) -> Builder | None:
        try:
            builder = self._builder_of()
            builder.check()
        except DominoError as error:
            self._why = f" {error.message}"
            return None
        return builder

    def _here(self, image: str) -> Image | None:
        return self._looks.image(image) if self._looks is not None else None

    def _unseen(self, image: str) -> Unseen:
        return Unseen(
            f"The image {image} is not on this machine, so its Python cannot be seen; pull it before.{self._why}"
        )

    def images(self, repository: str) -> list[Image]:
        return []

    def tag(self, image: str, reference: str) -> NoReturn:
        raise NotFound(f"{image} is not built, and cannot be named {reference}.")

    def push(self, reference: str, log: Log, *, user: tuple[str, str] | None = None) -> NoReturn:
        raise Unsupported(f"{reference} is not built, and cannot be pushed.")

    def remove_image(self, reference: str) -> None:
        self._recorded.pop(reference, None)


def _known(minor: str, patch: str | None, distribution: str | None) -> str:
    """Return what the probe of an environment prints in an official image."""
    return json.dumps(
        {
            "python": f"/usr/local/bin/python{minor}",
            "version": minor + (patch or _PATCH),
            "machine": platform.machine(),
            "libc": _LIBC[distribution or "bookworm"],
            "packages": {},
            "user": 0,
            "served": False,
            "seldon": "",
        }
    )
